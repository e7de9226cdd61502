"""A benchmark bound to its data: stages, evaluation order, every client's records, the test questions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fcit import registry
from fcit.config import RunConfig
from fcit.data import formats as forms
from fcit.data import partition, subset
from fcit.data.formats import Form, llava, places
from fcit.data.reading import VERSION, Survey, read_test, survey_train
from fcit.data.records import Record, TestRecord
from fcit.data.spec import BenchmarkSpec, placed, read_spec, suffixed
from fcit.data.table import MappedSurvey, Tables, joined, picked
from fcit.data.usable import SHOWN, ImageVerdicts, Judged, Usable, read_usable
from fcit.data.verdict import Judge, Verdict
from fcit.errors import ConfigError, DataError, FCITError
from fcit.mistakes import stage_problem

WARNED = 3  # records of a test set that are warned of in words


def cache_folder() -> Path:
    """Where rendered datasets, partitions and features are kept: ``FCIT_CACHE`` or ``~/.cache/fcit``."""
    return Path(os.environ.get("FCIT_CACHE") or Path.home() / ".cache" / "fcit")


@dataclass
class Benchmark:
    """A benchmark bound to a data root, a setting and a seed."""

    spec: BenchmarkSpec
    root: Path
    config: RunConfig
    judge: Judge | None = None  # what tokenises; None: records are looked at without a model
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)  # of data set and split
    formats: dict[str, str] = field(default_factory=dict)  # of the training files
    warnings: list[str] = field(default_factory=list)  # what prepare noticed and lets pass
    _partitions: dict[int, Path] = field(default_factory=dict)
    _skipped: dict[tuple[int, int], int] = field(default_factory=dict)
    _owners: dict[int, dict[str, str]] = field(default_factory=dict)  # of images in delivered files -> suffix

    @cached_property
    def stages(self) -> list[list[int]]:
        """For each stage, the task id of each participation slot."""
        slots = self.config.federation.clients_per_round
        if self.config.setting == "homogeneous":
            order = self.spec.homogeneous or list(range(len(self.spec.tasks)))
            return [[task] * slots for task in order]
        return self.spec.slots(slots, self.config.benchmark)

    def evaluation(self, stage: int) -> list[str]:
        """Datasets to score after ``stage``: those of every task seen so far, in task order."""
        seen = {task for slots in self.stages[: stage + 1] for task in slots}
        names = [name for task in sorted(seen, key=self._first_seen) for name in self.spec.tasks[task]]
        return list(dict.fromkeys(names))

    def _first_seen(self, task: int) -> tuple[int, int]:
        return next(n for n, slots in enumerate(self.stages) if task in slots), task

    @property
    def image_root(self) -> Path:
        """Folder that image names are relative to."""
        return self.spec.folder(self.root, "images")

    @property
    def instructions(self) -> Path:
        """Folder of the instruction files."""
        return self.spec.folder(self.root, "instructions")

    @cached_property
    def _tables(self) -> Tables | None:
        """Keeps large files out of memory; what is rendered here is small."""
        return Tables(cache_folder() / "records") if self.spec.source == "files" else None

    def _located(self, file: str) -> Path:
        """A file of a data set."""
        return places.located(self.instructions, file)

    def _form(self, name: str) -> Form:
        """How a data set's files are read."""
        return self.spec.datasets[name].form(self.image_root)

    def _survey(self, path: Path, form: Form) -> Survey | MappedSurvey:
        return self._tables.train(path, form) if self._tables else survey_train(path, form)

    def _questions(self, path: Path, references: Path | None, form: Form) -> Sequence[TestRecord]:
        return _read_once(self._tables, path, references, form, places.stamp(path))

    def _asked(self, name: str, record: TestRecord) -> TestRecord:
        """A question of a dataset as it is put to the model."""
        return self.spec.datasets[name].asked(record, blanks=self.spec.question_blanks == "kept")

    def _turns(self, record: Record) -> Record:
        """A record with the turns that are learnt (``data.turns``)."""
        return record if self.config.data.turns == "all" else record.first()

    def _kept(self, name: str, count: int) -> Sequence[int] | None:
        """Which of a dataset's training records are used; None: all."""
        most = self.config.data.max_records
        return None if most is None or most >= count else partition.kept(count, most, self.config.seed, name)

    def prepare(self, names: list[str] | None = None) -> None:
        """Make sure the files of these datasets (default: all) are there and can be read.

        Raises:
            ConfigError: everything that is missing or broken, together.
        """
        names = list(names or {n for task in self.spec.tasks for n in task})
        if self.spec.source == "mini":
            from fcit.data.mini.render import ensure

            for name in names:
                ensure(name, self.root)
            return
        missing = [f"{self.root} (data_root)"] if not self.root.is_dir() else []
        if not missing:
            tables = 0
            for name in names:
                for key, file in self.spec.files(name, self.config.evaluation.split).items():
                    path = self._located(file)
                    if not places.exists(path):
                        missing.append(f"{path}, named by datasets.{name}.{key} of the benchmark")
                tables += places.place_of(self._located(self.spec.datasets[name].train)).is_table
            if not self.image_root.is_dir() and tables < len(names):  # pictures of tables may be embedded
                missing.append(f"the image folder {self.image_root}, named by `images` of the benchmark")
        if missing:
            raise ConfigError([f"data_root: missing {what}" for what in missing])
        self.look(names)

    def look(self, names: list[str] | None = None) -> None:
        """Read, and where there is a judge tokenise, every record of these data sets (default: all).

        Raises:
            ConfigError: what is broken, together.
        """
        names = names or list(dict.fromkeys(n for task in self.spec.tasks for n in task))
        problems = [problem for name in names for problem in self._problems(name)]
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise ConfigError([*problems[:SHOWN], *more])

    def sentences(self, name: str, problems: dict[int, str], most: int) -> list[str]:
        """What is said of a data set's questions, by their positions in :meth:`test`, with file, line and record."""
        questions, references = self._split(name)
        path, form = self._located(questions), self._form(name)
        count = len(self._questions(path, self._located(references) if references else None, form))
        chosen = subset.chosen(count, name, self.config.evaluation.samples, self.config.evaluation.seed)
        found = forms.sentences(path, {chosen[n]: why for n, why in problems.items()}, most)
        more = len(problems) - most
        return found + ([f"{path}: ... and {more} more records"] if more > 0 else [])

    def told(self, more: Sequence[str] = ()) -> dict[str, Any]:
        """What was found of the data, for people: formats, tokens, turns left out, warnings and ``more`` of these."""
        found: dict[str, dict[str, Any]] = {}
        for (name, split), verdict in self.verdicts.items():
            numbers = {"records": verdict.count, "longest": verdict.longest, "unusable": len(verdict.problems)}
            numbers["mean"] = round(verdict.tokens / max(1, verdict.count - len(verdict.problems)))
            if verdict.dropped:
                numbers |= {"turns_dropped": sum(verdict.dropped.values()), "cut_short": len(verdict.dropped)}
            found.setdefault(name, {})[split] = numbers
        guessed = {n: form for n, form in self.formats.items() if self.spec.datasets[n].format is None}
        return {"tokens": found, "formats": guessed, "warnings": [*self.warnings, *more]}

    def _split(self, name: str) -> tuple[str, str | None]:
        """Files that a dataset is scored on: questions and, for captions, references."""
        return self.spec.split(name, self.config.evaluation.split)

    def _problems(self, name: str) -> list[str]:
        """Training records of a dataset that cannot be used, if too many, and every bad test record."""
        spec, form = self.spec.datasets[name], self._form(name)
        problems: list[str] = []
        try:
            path = self._located(spec.train)
            survey = self._survey(path, form)
            self.formats[name] = survey.format
            origin = (spec.suffix, form.key(path))
            judged = self._judged(path, lambda record: self._turns(spec.trained(record)), *origin)
            usable = Usable(survey, self._verdicts, spec.images, self._kept(name, len(survey.records)), judged)
            self.verdicts[name, "train"] = usable.verdict
            problems += usable.excess(self.config.max_bad_share)
        except DataError as error:
            problems.append(str(error))
        test, references = self._split(name)
        path = self._located(test)
        try:
            questions = self._questions(path, self._located(references) if references else None, form)
        except DataError as error:
            wanted = "references" if self.config.evaluation.split == "test" else "val_references"
            hint = f"; right captions may stand in a COCO file of their own: datasets.{name}.{wanted}"
            return [*problems, f"{error}{hint if spec.scorer.startswith('caption') and not references else ''}"]
        # Passing over a question would change the score.
        images = (image for question in questions for image in placed(spec.images, question.images))
        bad = self._verdicts.problems(images) if self._verdicts else {}
        problems += [f"{path}: {reason}" for reason in bad.values()]
        return problems + self._unanswerable(name, path, questions)

    def _judged(self, path: Path, change: Callable[[Record], Record], *origin: object) -> Judged | None:
        """What asks the judge about records of a file, changed to what is learnt of them."""
        if self.judge is None:
            return None
        judge, parts = self.judge, [*_stamps(path), self.config.data.turns, *origin]
        return lambda places, records: judge.train(parts, places, picked(records, range(len(records)), change))

    def _unanswerable(self, name: str, path: Path, questions: Sequence[TestRecord]) -> list[str]:
        """The questions of a data set that the model cannot be asked; what only costs score is noted."""
        if self.judge is None:
            return []
        spec, (_, references) = self.spec.datasets[name], self._split(name)
        origin = [*_stamps(path, *([self._located(references)] if references else [])), spec.model_dump(mode="json")]
        origin.append(self.spec.question_blanks)
        asked = picked(questions, range(len(questions)), lambda question: self._asked(name, question))
        limit = self.config.evaluation.longest(spec.max_new_tokens)
        verdict = self.verdicts[name, "test"] = self.judge.test(origin, asked, limit)
        if not verdict.problems and not verdict.warnings:
            return []
        more = len(verdict.warnings) - WARNED
        self.warnings += forms.sentences(path, verdict.warnings, WARNED)
        self.warnings += [f"{path}: ... and {more} more records"] if more > 0 else []
        return forms.sentences(path, verdict.problems, SHOWN)

    def _train_rows(self, task: int) -> list[dict[str, object]]:
        """Rows of a task's client files, in LLaVA's format whatever its own files are in."""
        rows: list[dict[str, object]] = []
        for name in self.spec.tasks[task]:
            spec = self.spec.datasets[name]
            records = self._survey(self._located(spec.train), self._form(name)).records
            kept = self._kept(name, len(records))
            for record in records if kept is None else picked(records, kept):
                # What cannot be used its owner passes over, and counts.
                rows.append({} if record is None else llava.row_of(spec.trained(record)))
        return rows

    def _task_folder(self, task: int) -> Path:
        """The folder of a task's client files; generated in the cache where the root has none."""
        if task in self._partitions:
            return self._partitions[task]
        federation, spec = self.config.federation, self.spec.partition
        most, datasets = self.config.data.max_records, [self.spec.datasets[n] for n in self.spec.tasks[task]]
        folder = self.root / spec.folder / str(float(federation.beta)) / f"Task{task + 1}"
        # Delivered files do not say which data set a record is of, so that none of it could be kept by number.
        if not folder.is_dir() or most is not None:
            files = [self._located(dataset.train) for dataset in datasets]
            missing = next((f for f in files if not places.exists(f)), None)
            if missing is not None:
                raise DataError(f"{missing}: no such instruction file; check data_root and the benchmark file")
            stamps = [(str(f), *places.stamp(f)) for f in files]
            more: list[object] = [
                what for what in ([d.images for d in datasets], most) if what and what != [""] * len(datasets)
            ]
            mapped = [d.columns.model_dump() if d.columns else None for d in datasets]
            more += [mapped] if any(mapped) else []
            suffixes = [dataset.suffix for dataset in datasets]
            origin = partition.fingerprint(VERSION, stamps, suffixes, federation.clients, spec.model_dump(), *more)
            folder = (
                cache_folder() / "partitions" / f"{self.spec.name}-{origin}"
                / f"{float(federation.beta)}-seed{self.config.seed}" / f"Task{task + 1}"
            )  # fmt: skip
        if not folder.is_dir():
            rows = self._train_rows(task)
            shares = partition.partition(
                len(rows), federation.clients, federation.beta, self.config.seed, task,
                min_size=spec.min_size,
                # Of few records hardly a draw would leave every client one.
                reserve=spec.reserve if most is None else max(spec.reserve, 1),
            )  # fmt: skip
            partition.write_clients(folder, rows, shares)
        self._partitions[task] = folder
        return folder

    def divide(self) -> None:
        """Generate the partitions that are not there, all tasks.

        Raises:
            DataError, ConfigError: a task has too few records for its clients.
        """
        for task in range(len(self.spec.tasks)):
            try:
                self._task_folder(task)
            except FCITError as error:
                names = ", ".join(self.spec.tasks[task])
                raise ConfigError(
                    f"task {task} ({names}): {error}; lower federation.clients, or partition.reserve and "
                    f"partition.min_size in the benchmark file"
                    + ("" if self.config.data.max_records is None else ", or raise data.max_records")
                ) from None

    @cached_property
    def _verdicts(self) -> ImageVerdicts | None:
        """What is known of the images; those rendered here need no look."""
        if self.spec.source == "mini":
            return None
        kept = self.config.backbone.feature_cache == "disk"
        return ImageVerdicts(self.image_root, cache_folder() / "images" if kept else None)

    def shard(self, client: int, task: int) -> Sequence[Record]:
        """The training records of one client for one task that can be used; of a large file, decoded when asked for.

        Raises:
            DataError: there is no such file, or too many of its records cannot be used (``max_bad_share``).
        """
        folder = self._task_folder(task)
        path = folder / f"client_{client}.json"
        if not path.is_file():
            raise DataError(f"{path}: the partition has no file for client {client}")
        share, ours = self.config.max_bad_share, folder.is_relative_to(cache_folder())
        if share > 0 and ours:
            share = 1.0  # cut by us: its data set was measured as a whole, and one client may hold most of what is bad
        suffix_of = self._delivered_suffix(task) if not ours else None

        def learnt(record: Record) -> Record:
            return self._turns(suffixed(record, suffix_of(record)) if suffix_of else record)

        suffixes = {name: self.spec.datasets[name].suffix for name in self.spec.tasks[task]} if suffix_of else {}
        judged = self._judged(path, learnt, suffixes)
        usable = read_usable(path, self._verdicts, share, self._tables, judged)
        self._skipped[client, task] = usable.skipped
        if suffix_of is None and self.config.data.turns == "all":
            return usable.records
        return picked(usable.records, range(len(usable.records)), learnt)

    def _delivered_suffix(self, task: int) -> Callable[[Record], str] | None:
        """The suffix of a record in a delivered client file; None where no data set of the task has one.

        Such a file does not say which data set a record is of. Where these have different suffixes, the one whose
        training file names the record's first image owns it; a record nobody owns is left as it is.
        """
        suffixes = {self.spec.datasets[name].suffix for name in self.spec.tasks[task]}
        if len(suffixes) == 1:
            [suffix] = suffixes
            return (lambda record: suffix) if suffix else None
        if task not in self._owners:
            self._owners[task] = {
                image: spec.suffix
                for name in self.spec.tasks[task]
                for spec in [self.spec.datasets[name]]
                for record in self._survey(self._located(spec.train), self._form(name)).records
                if record is not None
                for image in placed(spec.images, record.images[:1])
            }
        owners = self._owners[task]
        return lambda record: owners.get(record.images[0], "") if record.images else ""

    def skipped(self, client: int, task: int) -> int:
        """How many records :meth:`shard` passes over; of the pooled participant (below 0), all clients' together.

        Raises:
            DataError: as :meth:`shard`.
        """
        if client < 0:
            return sum(self.skipped(k, task) for k in range(self.config.federation.clients))
        if (client, task) not in self._skipped:
            self.shard(client, task)
        return self._skipped[client, task]

    def pooled(self, task: int) -> Sequence[Record]:
        """All clients' records of a task together, in client order."""
        return joined([self.shard(client, task) for client in range(self.config.federation.clients)])

    def test(self, name: str) -> Sequence[TestRecord]:
        """The records a dataset is scored on (``evaluation.split``, ``evaluation.samples``)."""
        return _read_split(self, name)


def _stamps(*paths: Path) -> list[object]:
    """Names of files as they are now."""
    return [part for path in paths for part in (places.resolved(path), *places.stamp(path))]


@lru_cache(maxsize=64)
def _read_once(
    tables: Tables | None, path: Path, references: Path | None, form: Form, stamp: tuple[int, ...]
) -> Sequence[TestRecord]:
    return tables.test(path, references, form) if tables else read_test(path, references, form)


def _read_split(benchmark: Benchmark, name: str) -> Sequence[TestRecord]:
    file, refs = benchmark._split(name)
    references = benchmark._located(refs) if refs else None
    records = benchmark._questions(benchmark._located(file), references, benchmark._form(name))
    asked = benchmark.config.evaluation
    chosen = subset.chosen(len(records), name, asked.samples, asked.seed)
    return picked(records, chosen, lambda record: benchmark._asked(name, record))


def open_benchmark(config: RunConfig) -> Benchmark:
    """Bind the benchmark a configuration names to its data.

    Raises:
        ConfigError: unknown benchmark, no data root, or a setting or stages it does not define.
    """
    if registry.is_own(config.benchmark):
        benchmark = registry.resolve("benchmark", config.benchmark)(config)
        if not isinstance(benchmark, Benchmark):
            raise ConfigError(f"benchmark: {config.benchmark} returned {type(benchmark).__name__}, not a Benchmark")
        return _checked(benchmark)
    spec = read_spec(config.benchmark)
    if config.data_root is not None:
        root = Path(config.data_root).expanduser()
    elif spec.source == "mini":
        from fcit.data.mini.render import VERSION

        root = cache_folder() / VERSION
    else:
        folders = " and ".join(f"{Path(spec.folder(Path(), of)).name}/" for of in ("instructions", "images"))
        raise ConfigError(
            f"data_root: benchmark {spec.name!r} reads files; say where, e.g. data_root=/data/fcit (it holds {folders})"
        )
    return _checked(Benchmark(spec, root, config))


def _checked(benchmark: Benchmark) -> Benchmark:
    """The benchmark, after a look at what the configuration says of its stages, before anything is loaded."""
    problem = stage_problem(benchmark.config, len(benchmark.stages), f"benchmark {benchmark.spec.name!r}")
    if problem is not None:
        raise ConfigError(problem)
    return benchmark
