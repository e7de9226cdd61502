"""A stream: the tasks that arrive stage by stage, and what the server itself knows of their data.

There are two kinds (key ``stream``). A benchmark's tasks are known to the server with all their questions: a
:class:`fcit.data.benchmark.Benchmark` is such a stream. Or every site brings tasks of its own (:class:`SiteStream`):
the server then knows how many stages there are and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from string import ascii_uppercase
from typing import TYPE_CHECKING, Protocol

from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import TestRecord
from fcit.data.verdict import Judge
from fcit.errors import DataError

if TYPE_CHECKING:
    from fcit.data.spec import DatasetSpec, Label


class Stream(Protocol):
    """What the server's loop asks about the tasks of a run.

    Attributes:
        config: of the run.
        warnings: what was noticed about the data that does not stop the run.
    """

    config: RunConfig
    warnings: list[str]

    @property
    def name(self) -> str:
        """As results and reports call it."""

    @property
    def root(self) -> Path | None:
        """The folder of the data; None: they are not at the server."""

    @property
    def datasets(self) -> Mapping[str, DatasetSpec]:
        """The data sets the server knows, by name."""

    @property
    def tasks(self) -> Sequence[Sequence[str]]:
        """The names of each task's data sets, by the task's number."""

    @property
    def labels(self) -> Sequence[Label]:
        """Letter and description of each task; none where they have none."""

    @property
    def stage_count(self) -> int:
        """Number of stages."""

    def slots(self, stage: int) -> list[tuple[int, ...]]:
        """The tasks that each participation slot of a stage trains on; an empty tuple where only its client knows."""

    def evaluation(self, stage: int) -> list[str]:
        """The data sets that the server scores after a stage, in the order of their tasks."""

    @property
    def held_out(self) -> Mapping[str, Stream]:
        """Where the questions come from that are asked and never trained, by the data sets' names."""

    def test(self, name: str) -> Sequence[TestRecord]:
        """The questions that a data set is scored on.

        Raises:
            DataError: they are not at the server, or cannot be read.
        """

    def most_records(self, client: int, tasks: Sequence[int]) -> int:
        """The most training records that a client can have of these tasks.

        Raises:
            DataError: the client's file is not at the server, or cannot be read.
        """

    def judged_by(self, judge: Callable[[ImageSizes], Judge]) -> None:
        """Have every record checked with a model's tokenizer from now on; the judge is made if there are records."""

    def prepare(self) -> None:
        """Check that the data can be used, and render those that are made on first use.

        Raises:
            ConfigError: everything that is missing or broken, together.
        """

    def divide(self) -> None:
        """Divide the tasks' records among the clients, where that has not been done.

        Raises:
            ConfigError: a task has too few records for its clients.
        """


def labels(stream: Stream) -> list[tuple[str, str]]:
    """Letter and description of what each stage is about, for models that choose among stages.

    They are the benchmark's ``labels`` where every stage trains one task, each another one. Otherwise stages are
    lettered in their order (after Z: "", none), with the descriptions of their tasks together; a task without one is
    described by the names of its data sets and the line that ends their instructions.
    """
    numbers = [sorted({task for tasks in stream.slots(stage) for task in tasks}) for stage in range(stream.stage_count)]
    texts = [
        "; ".join(_description(stream, task) for task in tasks) or f"what was learnt in stage {stage + 1}"
        for stage, tasks in enumerate(numbers)
    ]
    single = [tasks[0] for tasks in numbers if len(tasks) == 1]
    if stream.labels and len(set(single)) == len(numbers):
        letters = [stream.labels[task].letter for task in single]
    else:
        letters = [ascii_uppercase[stage : stage + 1] for stage in range(len(numbers))]
    return list(zip(letters, texts, strict=True))


def _description(stream: Stream, task: int) -> str:
    if stream.labels:
        return stream.labels[task].description
    names = stream.tasks[task]
    lines = list(dict.fromkeys(stream.datasets[name].suffix for name in names))
    return f"{', '.join(names)} ({' '.join(lines)})" if any(lines) else ", ".join(names)


class SiteStream:
    """Stages without data: tasks, records and questions are at the sites, which score themselves."""

    name = "sites"
    root = None

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.warnings: list[str] = []

    @property
    def datasets(self) -> Mapping[str, DatasetSpec]:
        """None: the server knows no data set."""
        return {}

    @property
    def tasks(self) -> Sequence[Sequence[str]]:
        """None: the server can name no task."""
        return []

    @property
    def labels(self) -> Sequence[Label]:
        """None: the server can name no task."""
        return []

    @property
    def stage_count(self) -> int:
        """``federation.stages``."""
        return self.config.federation.stages

    def slots(self, stage: int) -> list[tuple[int, ...]]:
        """As many slots as clients take part in a round, each without a task."""
        return [()] * self.config.federation.clients_per_round

    def evaluation(self, stage: int) -> list[str]:
        """None: the server has no questions."""
        return []

    @property
    def held_out(self) -> Mapping[str, Stream]:
        """None: the server has no questions."""
        return {}

    def test(self, name: str) -> Sequence[TestRecord]:
        """Always raises DataError: questions stay at the sites."""
        raise DataError(f"{name}: with stream: site the questions are at the sites")

    def most_records(self, client: int, tasks: Sequence[int]) -> int:
        """``federation.max_records``: only the client knows how many it has."""
        return self.config.federation.max_records

    def judged_by(self, judge: Callable[[ImageSizes], Judge]) -> None:
        """Nothing to check: each site checks its own records."""

    def prepare(self) -> None:
        """Nothing to prepare: the data are at the sites."""

    def divide(self) -> None:
        """Nothing to divide: each site has its own records."""


def open_stream(config: RunConfig) -> Stream:
    """The stream of a run's configuration.

    Raises:
        ConfigError: as :func:`fcit.data.benchmark.open_benchmark`.
    """
    return SiteStream(config) if config.stream == "site" else open_benchmark(config)


def described(config: RunConfig) -> str:
    """The stream of a run in a few words, for a model card; nothing is opened."""
    if config.stream == "site":
        return f"{config.federation.stages} stages of tasks that the sites kept to themselves"
    return f"`{PurePath(config.benchmark).stem}` ({config.setting}, seed {config.seed})"
