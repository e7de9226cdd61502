"""A benchmark bound to its data: stages, evaluation order, every client's records, the test questions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from fcit import registry
from fcit.config import RunConfig
from fcit.config.checks import stage_problem
from fcit.data import partition, prepare, subset
from fcit.data.formats import Form, llava, places
from fcit.data.reading import VERSION, Survey, read_test, survey_train
from fcit.data.records import Record, TestRecord
from fcit.data.spec import BenchmarkSpec, DatasetSpec, placed, read_spec, suffixed
from fcit.data.table import MappedSurvey, Tables, joined, picked
from fcit.data.usable import SHOWN, ImageVerdicts, Judged, read_usable
from fcit.data.verdict import Judge, Verdict
from fcit.errors import ConfigError, DataError, FCITError

RENDERED = 256  # tokens of the longest record that is rendered here, and more


def cache_folder() -> Path:
    """Where rendered datasets, partitions and features are kept: ``FCIT_CACHE`` or ``~/.cache/fcit``."""
    return Path(os.environ.get("FCIT_CACHE") or Path.home() / ".cache" / "fcit")


class Owners:
    """Which suffix belongs behind a record that does not say which data set it is of.

    A record is known by its images, first question and first answer, where several data sets have such a one or none
    by its first image alone; if that has several suffixes, or none, nobody knows.

    Args:
        records: of training files: suffix, record, its images from the image root.
    """

    def __init__(self, records: Iterable[tuple[str, Record, tuple[str, ...]]]) -> None:
        self._records: dict[tuple[object, ...], set[str]] = {}
        self._images: dict[str, set[str]] = {}
        for suffix, record, images in records:
            self._records.setdefault(self._key(record, images), set()).add(suffix)
            for image in images[:1]:
                self._images.setdefault(image, set()).add(suffix)

    @staticmethod
    def _key(record: Record, images: tuple[str, ...]) -> tuple[object, ...]:
        return images, record.turns[0].question, record.turns[0].answer

    def suffix(self, record: Record) -> str | None:
        """The suffix of a record whose images are named from the image root; None: not known."""
        found = self._records.get(self._key(record, record.images), set())
        if len(found) != 1 and record.images:
            found = self._images.get(record.images[0], set())
        return next(iter(found)) if len(found) == 1 else None


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
    _owners: dict[int, Owners] = field(default_factory=dict)
    unowned: dict[tuple[int, int], int] = field(default_factory=dict)  # delivered records of no known data set

    @property
    def name(self) -> str:
        """As results and reports call it."""
        return self.spec.name

    @property
    def datasets(self) -> dict[str, DatasetSpec]:
        """The data sets by name."""
        return self.spec.datasets

    @property
    def tasks(self) -> list[list[str]]:
        """The names of each task's data sets, by the task's number."""
        return self.spec.tasks

    @cached_property
    def stages(self) -> list[list[int]]:
        """For each stage, the task id of each participation slot."""
        slots = self.config.federation.clients_per_round
        if self.config.setting == "homogeneous":
            order = self.spec.homogeneous or list(range(len(self.spec.tasks)))
            return [[task] * slots for task in order]
        return self.spec.slots(slots, self.config.benchmark)

    @property
    def stage_count(self) -> int:
        """Number of stages."""
        return len(self.stages)

    def slots(self, stage: int) -> list[tuple[int, ...]]:
        """The task that each participation slot of a stage trains on."""
        return [(task,) for task in self.stages[stage]]

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

    def judged_by(self, judge: Callable[[], Judge]) -> None:
        """Have every record checked with a model's tokenizer from now on.

        Raises:
            ConfigError: the model cannot be used.
        """
        self.judge = judge()

    def prepare(self, names: list[str] | None = None) -> None:
        """Make sure the files of these datasets (default: all) are there and can be used, every record of them.

        Raises:
            ConfigError: everything that is missing or broken, together.
        """
        names = list(names or {n for task in self.spec.tasks for n in task})
        if self.spec.source == "mini":
            from fcit.data.mini.render import ensure

            for name in names:
                ensure(name, self.root)
            backbone = self.config.backbone
            if backbone.model != "fcit-tiny" or backbone.max_length < RENDERED:  # else they are made for each other
                self.look(names)
            return
        missing = prepare.missing(self, names)
        if missing:
            raise ConfigError([f"data_root: missing {what}" for what in missing])
        self.look(names)

    def look(self, names: list[str] | None = None) -> None:
        """Read, and where there is a judge tokenise, every record of these data sets (default: all).

        Raises:
            ConfigError: what is broken, together.
        """
        names = names or list(dict.fromkeys(n for task in self.spec.tasks for n in task))
        problems = [problem for name in names for problem in prepare.problems(self, name)]
        self.warnings += prepare.delivered(self, names)
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise ConfigError([*problems[:SHOWN], *more])

    def _split(self, name: str) -> tuple[str, str | None]:
        """Files that a dataset is scored on: questions and, for captions, references."""
        return self.spec.split(name, self.config.evaluation.split)

    def _judged(self, path: Path, change: Callable[[Record], Record], *origin: object) -> Judged | None:
        """What asks the judge about records of a file, changed to what is learnt of them."""
        if self.judge is None:
            return None
        judge, parts = self.judge, [*prepare.stamps(path), self.config.data.turns, *origin]
        return lambda places, records: judge.train(parts, places, picked(records, range(len(records)), change))

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
        folder = self._delivered(task)
        if not self.is_delivered(task):
            files = [self._located(dataset.train) for dataset in datasets]
            missing = next((f for f in files if not places.exists(f)), None)
            if missing is not None:
                raise DataError(f"{missing}: no such instruction file; check data_root and the benchmark file")
            stamps = [(str(f), *places.stamp(f)) for f in files]
            more: list[object] = [
                what for what in ([d.images for d in datasets], most) if what and what != [""] * len(datasets)
            ]
            named = [d.format for d in datasets]
            more += [named] if any(named) else []
            mapped = [d.columns.model_dump() if d.columns else None for d in datasets]
            more += [mapped] if any(mapped) else []
            suffixes = [dataset.suffix for dataset in datasets]
            origin = partition.fingerprint(VERSION, stamps, suffixes, federation.clients, spec.model_dump(), *more)
            folder = (
                cache_folder()
                / "partitions"
                / f"{self.spec.name}-{origin}"
                / f"{float(federation.beta)}-seed{self.config.seed}"
                / f"Task{task + 1}"
            )
        if not folder.is_dir():
            rows = self._train_rows(task)
            shares = partition.partition(
                len(rows),
                federation.clients,
                federation.beta,
                self.config.seed,
                task,
                min_size=spec.min_size,
                # Of few records hardly a draw would leave every client one.
                reserve=spec.reserve if most is None else max(spec.reserve, 1),
            )
            partition.write_clients(folder, rows, shares)
        self._partitions[task] = folder
        return folder

    def is_delivered(self, task: int) -> bool:
        """Whether a task's client files lie under the data root and are used.

        They do not say which data set a record is of, so that with ``data.max_records`` none could be kept by number.
        """
        return self.config.data.max_records is None and self._delivered(task).is_dir()

    def _delivered(self, task: int) -> Path:
        """Where a task's delivered client files would lie."""
        return self.root / self.spec.partition.folder / str(float(self.config.federation.beta)) / f"Task{task + 1}"

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
        share, ours = self.config.max_bad_share, not self.is_delivered(task)
        if share > 0 and ours:
            share = 1.0  # cut by us: its data set was measured as a whole, and one client may hold most of what is bad
        suffix_of = self._delivered_suffix(task) if not ours else None

        def learnt(record: Record) -> Record:
            return self._turns(suffixed(record, suffix_of(record) or "") if suffix_of else record)

        origin: list[object] = []
        if suffix_of:
            datasets = [self.spec.datasets[name] for name in self.spec.tasks[task]]
            origin = [[d.suffix for d in datasets], *prepare.stamps(*(self._located(d.train) for d in datasets))]
        judged = self._judged(path, learnt, *origin)
        usable = read_usable(path, self._verdicts, share, self._tables, judged)
        self._skipped[client, task] = usable.skipped
        if suffix_of:
            self.unowned[client, task] = sum(suffix_of(record) is None for record in usable.records)
        if suffix_of is None and self.config.data.turns == "all":
            return usable.records
        return picked(usable.records, range(len(usable.records)), learnt)

    def _delivered_suffix(self, task: int) -> Callable[[Record], str | None] | None:
        """The suffix of a record in a delivered client file (None: not known); None where no data set has one."""
        suffixes = {self.spec.datasets[name].suffix for name in self.spec.tasks[task]}
        if len(suffixes) == 1:
            [suffix] = suffixes
            return (lambda record: suffix) if suffix else None
        if task not in self._owners:
            self._owners[task] = Owners(
                (spec.suffix, record, placed(spec.images, record.images))
                for spec in (self.spec.datasets[name] for name in self.spec.tasks[task])
                for record in self._survey(self._located(spec.train), spec.form(self.image_root)).records
                if record is not None
            )
        return self._owners[task].suffix

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

    def most_records(self, client: int, tasks: Sequence[int]) -> int:
        """How many training records a client has of these tasks.

        Raises:
            DataError: as :meth:`shard`.
        """
        return sum(len(self.shard(client, task)) for task in tasks)

    def pooled(self, task: int) -> Sequence[Record]:
        """All clients' records of a task together, in client order."""
        return joined([self.shard(client, task) for client in range(self.config.federation.clients)])

    def test(self, name: str) -> Sequence[TestRecord]:
        """The records a dataset is scored on (``evaluation.split``, ``evaluation.samples``)."""
        return _read_split(self, name)


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
