"""A benchmark bound to its data: its stages, the records of every client, the questions asked after a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fcit import registry
from fcit.config import RunConfig, personal_checks
from fcit.config.checks import epochs_problem, stage_problem
from fcit.data import subset
from fcit.data.checks import before_run
from fcit.data.dataset import CheckRecords, DatasetFiles, read_usable
from fcit.data.formats import llava
from fcit.data.formats.files import stamps
from fcit.data.images.sizes import ImageSizes
from fcit.data.own_questions import as_questions, kept_out
from fcit.data.partition import ClientFiles, SuffixIndex
from fcit.data.records import Record, TestRecord, joined, picked, placed, suffixed
from fcit.data.spec import BenchmarkSpec, DatasetSpec, Label, read_spec
from fcit.data.verdict import Judge, Verdict
from fcit.errors import ConfigError
from fcit.io.cache import cache_folder

RENDERED = 256  # tokens of the longest record of the built-in data sets, rounded up


@dataclass
class Benchmark:
    """A benchmark bound to a data root, a setting and a seed; it is a :class:`fcit.data.stream.Stream`.

    Attributes:
        judge: checks records with a model's tokenizer; None: they are read without a model.
        verdicts: of the judge, by data set and split.
        formats: of the training files, by data set.
        warnings: what :meth:`prepare` noticed that does not stop the run.
        unknown_suffix: number of delivered records whose suffix is not known, by client and task.
    """

    spec: BenchmarkSpec
    root: Path
    config: RunConfig
    judge: Judge | None = None
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unknown_suffix: dict[tuple[int, int], int] = field(default_factory=dict)
    _skipped: dict[tuple[int, int], int] = field(default_factory=dict)
    _suffixes: dict[int, SuffixIndex] = field(default_factory=dict)

    # ------------------------------------------------------------------ stages

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

    @property
    def labels(self) -> list[Label]:
        """Letter and description of each task; none where the benchmark's file has none."""
        return self.spec.labels

    @cached_property
    def stages(self) -> list[list[int]]:
        """For each stage, the task number of each participation slot."""
        slots = self.config.federation.clients_per_round
        if self.config.setting != "heterogeneous":
            order = self.spec.homogeneous or list(range(len(self.tasks)))
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
        """Data sets to score after ``stage``: those of every task seen so far, in task order."""
        seen = {task for slots in self.stages[: stage + 1] for task in slots}
        names = [name for task in sorted(seen, key=self._first_seen) for name in self.tasks[task]]
        return list(dict.fromkeys(names))

    def _first_seen(self, task: int) -> tuple[int, int]:
        return next(n for n, slots in enumerate(self.stages) if task in slots), task

    # ------------------------------------------------------------------ before a run

    @property
    def image_root(self) -> Path:
        """Folder that image names are relative to."""
        return self.spec.folder(self.root, "images")

    @cached_property
    def files(self) -> DatasetFiles:
        """The files of the data sets."""
        return DatasetFiles(self.spec, self.root, self.config)

    def judged_by(self, judge: Callable[[ImageSizes], Judge]) -> None:
        """Have every record checked with a model's tokenizer from now on.

        Args:
            judge: makes the judge of records with images of these sizes.

        Raises:
            ConfigError: the model cannot be used.
        """
        self.judge = judge(ImageSizes(self.image_root, self.config.data.pictures))

    def prepare(self, names: list[str] | None = None) -> None:
        """Check that the files of these data sets exist and every record of them can be used.

        Built-in data sets are rendered if they have not been. Default: all, and the held-out ones.

        Raises:
            ConfigError: everything that is missing or broken, together.
        """
        if names is None:
            for name, owner in self.held_out.items():
                owner.judge = self.judge.below(owner.image_root) if self.judge else None
                owner.prepare([name])
        names = list(names or {name for task in self.tasks for name in task})
        if self.spec.source == "mini":
            from fcit.data.mini.render import ensure

            for name in names:
                ensure(name, self.root)
            backbone = self.config.backbone
            if backbone.model == "fcit-tiny" and backbone.max_length >= RENDERED:
                return  # the data sets and this model are made for each other
        else:
            missing = before_run.missing(self, names)
            if missing:
                raise ConfigError([f"data_root: missing {what}" for what in missing])
        self.look(names)

    def look(self, names: list[str] | None = None) -> None:
        """Read every record of these data sets (default: all, and the held-out ones), and tokenise it for the judge.

        Raises:
            ConfigError: everything that is broken, together.
        """
        for name, owner in self.held_out.items() if names is None else ():
            owner.judge = self.judge.below(owner.image_root) if self.judge else None
            owner.look([name])
        before_run.check(self, names or list(dict.fromkeys(name for task in self.tasks for name in task)))

    def divide(self) -> None:
        """Generate the client files of every task that has none.

        Raises:
            ConfigError: a task has too few records for its clients. DataError: client files cannot be read or written.
        """
        for task, names in enumerate(self.tasks):
            try:
                self.client_files.folder(task)
            except ConfigError as error:
                raise ConfigError(
                    f"task {task} ({', '.join(names)}): {error}; lower federation.clients, or partition.reserve and "
                    f"partition.min_size in the benchmark file"
                    + ("" if self.config.data.max_records is None else ", or raise data.max_records")
                ) from None

    def checker(self, path: Path, change: Callable[[Record], Record], *origin: object) -> CheckRecords | None:
        """Has the judge check records of a file as they are learnt, ``change`` applied; None: there is no judge.

        Args:
            origin: what identifies the records beside the file and ``data.turns``; verdicts are remembered by it.
        """
        if self.judge is None:
            return None
        judge, identity = self.judge, [*stamps(path), self.config.data.turns, *origin]
        return lambda positions, records: judge.train(identity, positions, picked(records, range(len(records)), change))

    # ------------------------------------------------------------------ training records

    @cached_property
    def client_files(self) -> ClientFiles:
        """The files that the tasks' records are divided into."""
        return ClientFiles(self.spec, self.root, self.config, self._rows)

    def _rows(self, task: int) -> list[dict[str, object]]:
        """Rows of a task's client files, in LLaVA's format whatever its own files are in."""
        rows: list[dict[str, object]] = []
        for name in self.tasks[task]:
            records = self.files.train_file(name).records
            used = self.files.used(name, len(records))
            for record in records if used is None else picked(records, used):
                # An empty row keeps the place of a record that cannot be used: its client passes over it and counts it.
                rows.append({} if record is None else llava.row_of(self.datasets[name].for_training(record)))
        return rows

    def learnt(self, record: Record) -> Record:
        """A record with the turns that are learnt (``data.turns``)."""
        return record if self.config.data.turns == "all" else record.first()

    def shard(self, client: int, task: int) -> Sequence[Record]:
        """The training records of one client for one task that can be used; of a large file, decoded on access.

        Raises:
            DataError: there is no such file, or too many of its records cannot be used (``max_bad_share``).
        """
        usable = self._usable(client, task)
        kept = set(self._kept_out(client, task, len(usable)))
        return picked(usable, [n for n in range(len(usable)) if n not in kept]) if kept else usable

    def _kept_out(self, client: int, task: int, count: int) -> list[int]:
        return kept_out(count, self.config.evaluation.personal, self.config.seed, client, task)

    def own_questions(self, client: int, task: int) -> list[TestRecord]:
        """The records of a shard that are kept out of its training, as questions (``evaluation.personal``).

        Raises:
            DataError: as :meth:`shard`.
        """
        usable = self._usable(client, task)
        return as_questions([usable[place] for place in self._kept_out(client, task, len(usable))])

    def _usable(self, client: int, task: int) -> Sequence[Record]:
        path, delivered = self.client_files.file(client, task), self.client_files.is_delivered(task)
        share = self.config.max_bad_share
        if share > 0 and not delivered:
            share = 1.0  # the data set was measured as a whole, and one client may hold most of its bad records
        suffix_of = self._delivered_suffix(task) if delivered else None

        def learnt(record: Record) -> Record:
            return self.learnt(suffixed(record, suffix_of(record) or "") if suffix_of else record)

        origin: list[object] = []
        if suffix_of:
            datasets = [self.datasets[name] for name in self.tasks[task]]
            trained = (self.files.located(dataset.train) for dataset in datasets)
            origin = [[dataset.suffix for dataset in datasets], *stamps(*trained)]
        usable = read_usable(
            path, self.files.image_verdicts, share, self.files.store, self.checker(path, learnt, *origin)
        )
        self._skipped[client, task] = usable.skipped
        if suffix_of:
            self.unknown_suffix[client, task] = sum(suffix_of(record) is None for record in usable.records)
        if suffix_of is None and self.config.data.turns == "all":
            return usable.records
        return picked(usable.records, range(len(usable.records)), learnt)

    def _delivered_suffix(self, task: int) -> Callable[[Record], str | None] | None:
        """The suffix of a record in a delivered client file (None: not known); None where no data set has one."""
        suffixes = {self.datasets[name].suffix for name in self.tasks[task]}
        if len(suffixes) == 1:
            [suffix] = suffixes
            return (lambda record: suffix) if suffix else None
        if task not in self._suffixes:
            self._suffixes[task] = SuffixIndex(
                (self.datasets[name].suffix, record, placed(self.datasets[name].images, record.images))
                for name in self.tasks[task]
                for record in self.files.train_file(name).records
                if record is not None
            )
        return self._suffixes[task].suffix

    def skipped(self, client: int, task: int) -> int:
        """How many records :meth:`shard` passes over; of the pooled participant (below 0), those of all clients.

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

    # ------------------------------------------------------------------ test questions

    @cached_property
    def held_out(self) -> dict[str, Benchmark]:
        """The benchmarks of ``evaluation.held_out``, by the names of their data sets that are asked.

        Raises:
            ConfigError: an unknown benchmark or data set, no data root, or a name that is taken.
        """
        from fcit.data.held_out import owners  # it makes benchmarks

        return owners(self)

    def owner(self, name: str) -> Benchmark:
        """The benchmark that a data set belongs to: this one, or a held-out one."""
        return self if name in self.datasets else self.held_out[name]

    def as_asked(self, name: str, record: TestRecord) -> TestRecord:
        """A question of a data set as it is put to the model."""
        return self.datasets[name].for_testing(record, blanks=self.spec.question_blanks == "kept")

    def test(self, name: str) -> Sequence[TestRecord]:
        """The questions that a data set is scored on (``evaluation.split``, ``evaluation.samples``), as they are asked.

        Raises:
            DataError: as :meth:`DatasetFiles.questions`.
        """
        if (owner := self.owner(name)) is not self:
            return owner.test(name)
        questions, evaluation = self.files.questions(name), self.config.evaluation
        chosen = subset.chosen(len(questions), name, evaluation.samples, evaluation.seed)
        return picked(questions, chosen, lambda record: self.as_asked(name, record))


def open_benchmark(config: RunConfig, trains: bool = True) -> Benchmark:
    """Bind the benchmark a configuration names to its data.

    Args:
        trains: refuse one without tasks.

    Raises:
        ConfigError: unknown benchmark, no data root, a setting or stages it does not define, or code of the user's own
            that returns anything but a benchmark.
    """
    if registry.is_own(config.benchmark):
        benchmark = registry.resolve("benchmark", config.benchmark)(config)
        if not isinstance(benchmark, Benchmark):
            raise ConfigError(f"benchmark: {config.benchmark} returned {type(benchmark).__name__}, not a Benchmark")
        return _checked(benchmark)
    spec = read_spec(config.benchmark)
    if trains and not spec.tasks:
        raise ConfigError(
            f"benchmark: {spec.name!r} has questions and no tasks to train; ask it beside another benchmark, "
            f"evaluation.held_out=[{config.benchmark}]"
        )
    return _checked(Benchmark(spec, root_of(spec, config.data_root), config))


def root_of(
    spec: BenchmarkSpec, given: str | None, key: str = "data_root", example: str = "data_root=/data/fcit"
) -> Path:
    """The data root of a benchmark; what is rendered has one without being told.

    Raises:
        ConfigError: its files may be anywhere, and ``key``, written as in the example, does not say where.
    """
    if given is not None:
        return Path(given).expanduser()
    if spec.source == "mini":
        from fcit.data.mini.render import VERSION

        return cache_folder() / VERSION
    folders = " and ".join(f"{Path(spec.folder(Path(), of)).name}/" for of in ("instructions", "images"))
    raise ConfigError(f"{key}: benchmark {spec.name!r} reads files; say where, e.g. {example} (it holds {folders})")


def _checked(benchmark: Benchmark) -> Benchmark:
    """The benchmark, once the stages, tasks and held-out data sets that the configuration names are known to exist,
    before anything is loaded.
    """
    config, owner = benchmark.config, f"benchmark {benchmark.name!r}"
    _ = benchmark.held_out
    rules = [[benchmark.datasets[name].scorer for name in names] for names in benchmark.tasks]
    checked = (
        stage_problem(config, benchmark.stage_count, owner),
        epochs_problem(config, len(benchmark.tasks), owner),
        personal_checks.task_problem(config, rules, owner),
    )
    problems = [problem for problem in checked if problem is not None]
    if problems:
        raise ConfigError(problems)
    return benchmark
