"""A benchmark bound to its data: stages, evaluation order, every client's records, the test questions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from fcit import registry
from fcit.config import RunConfig
from fcit.data import partition, subset
from fcit.data.records import Record, Survey, TestRecord, read_test, survey_train
from fcit.data.spec import BenchmarkSpec, read_spec
from fcit.data.table import MappedSurvey, Tables, joined, picked
from fcit.data.usable import SHOWN, ImageVerdicts, Usable, placed, read_usable
from fcit.errors import ConfigError, DataError, FCITError
from fcit.mistakes import stage_problem


def cache_folder() -> Path:
    """Where rendered datasets, partitions and features are kept: ``FCIT_CACHE`` or ``~/.cache/fcit``."""
    return Path(os.environ.get("FCIT_CACHE") or Path.home() / ".cache" / "fcit")


@dataclass
class Benchmark:
    """A benchmark bound to a data root, a setting and a seed."""

    spec: BenchmarkSpec
    root: Path
    config: RunConfig
    _partitions: dict[int, Path] = field(default_factory=dict)
    _skipped: dict[tuple[int, int], int] = field(default_factory=dict)

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

    def _survey(self, path: Path) -> Survey | MappedSurvey:
        return self._tables.train(path) if self._tables else survey_train(path)

    def _questions(self, path: Path, references: Path | None) -> Sequence[TestRecord]:
        return _read_once(self._tables, path, references, path.stat().st_mtime_ns if path.is_file() else 0)

    def _asked(self, name: str, record: TestRecord) -> TestRecord:
        """A question of a dataset as it is put to the model."""
        spec = self.spec.datasets[name]
        image, text = placed(spec.images, record.image), spec.asked(record.instruction, record.answer)
        return replace(record, image=image, instruction=text)

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
            for name in names:
                for key, file in self.spec.files(name, self.config.evaluation.split).items():
                    if not (self.instructions / file).is_file():
                        missing.append(f"{self.instructions / file}, named by datasets.{name}.{key} of the benchmark")
            if not self.image_root.is_dir():
                missing.append(f"the image folder {self.image_root}, named by `images` of the benchmark")
        if missing:
            raise ConfigError([f"data_root: missing {what}" for what in missing])
        problems = [problem for name in names for problem in self._problems(name)]
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise ConfigError([*problems[:SHOWN], *more])

    def _split(self, name: str) -> tuple[str, str | None]:
        """Files that a dataset is scored on: questions and, for captions, references."""
        return self.spec.split(name, self.config.evaluation.split)

    def _problems(self, name: str) -> list[str]:
        """Training records of a dataset that cannot be used, if too many, and every bad test record."""
        spec, folder = self.spec.datasets[name], self.instructions
        problems: list[str] = []
        try:
            survey = self._survey(folder / spec.train)
            usable = Usable(survey, self._verdicts, spec.images, self._kept(name, len(survey.records)))
            problems += usable.excess(self.config.max_bad_share)
        except DataError as error:
            problems.append(str(error))
        test, references = self._split(name)
        try:
            questions = self._questions(folder / test, folder / references if references else None)
        except DataError as error:
            wanted = "references" if self.config.evaluation.split == "test" else "val_references"
            hint = f"; right captions may stand in a COCO file of their own: datasets.{name}.{wanted}"
            return [*problems, f"{error}{hint if spec.scorer.startswith('caption') and not references else ''}"]
        # Passing over a question would change the score.
        bad = self._verdicts.problems(placed(spec.images, q.image) for q in questions) if self._verdicts else {}
        return [*problems, *(f"{folder / test}: {reason}" for reason in bad.values())]

    def _train_rows(self, task: int) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for name in self.spec.tasks[task]:
            spec = self.spec.datasets[name]
            survey = survey_train(self.instructions / spec.train)
            kept = self._kept(name, len(survey.rows))
            for n in range(len(survey.rows)) if kept is None else kept:
                row = survey.rows[n]
                if survey.records[n] is None:  # its owner passes over it, and counts it
                    rows.append({})
                    continue
                turn = row["conversations"][0]
                row["conversations"][0] = {**turn, "value": spec.suffixed(str(turn["value"]))}
                rows.append({**row, "image": placed(spec.images, row["image"])})
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
            files = [self.instructions / dataset.train for dataset in datasets]
            missing = next((f for f in files if not f.is_file()), None)
            if missing is not None:
                raise DataError(f"{missing}: no such instruction file; check data_root and the benchmark file")
            stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
            more = [what for what in ([d.images for d in datasets], most) if what and what != [""] * len(datasets)]
            suffixes = [dataset.suffix for dataset in datasets]
            origin = partition.fingerprint(stamps, suffixes, federation.clients, spec.model_dump(), *more)
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
        share = self.config.max_bad_share
        if share > 0 and folder.is_relative_to(cache_folder()):
            share = 1.0  # cut by us: its data set was measured as a whole, and one client may hold most of what is bad
        usable = read_usable(path, self._verdicts, share, self._tables)
        self._skipped[client, task] = usable.skipped
        return usable.records

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


@lru_cache(maxsize=64)
def _read_once(tables: Tables | None, path: Path, references: Path | None, stamp: int) -> Sequence[TestRecord]:
    return tables.test(path, references) if tables else read_test(path, references)


def _read_split(benchmark: Benchmark, name: str) -> Sequence[TestRecord]:
    file, refs = benchmark._split(name)
    folder = benchmark.instructions
    path = folder / file
    records = benchmark._questions(path, folder / refs if refs else None)
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
