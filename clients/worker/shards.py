"""Sources of a worker's records: a benchmark's shards here, a site's own tasks in ``clients/site/tasks.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.data.records import Record, TestRecord, joined
from fcit.data.verdict import Judge
from fcit.errors import ConfigError


class Questions(Protocol):
    """Data sets that a model is asked."""

    def test(self, dataset: str) -> Sequence[TestRecord]:
        """The records a dataset is scored on."""

    def question_images(self, dataset: str) -> Path:
        """Folder that the image names of a data set's questions are relative to."""

    def max_new_tokens(self, dataset: str) -> int | None:
        """Longest answer to the data set's questions in tokens, if it sets one."""


class Shards(Questions, Protocol):
    """The data that orders are about."""

    @property
    def image_root(self) -> Path:
        """Folder that image names are relative to."""

    def tasks(self, stage: int, ordered: list[int]) -> list[int]:
        """The tasks that an order is about, in the data's own numbers."""

    def records(self, client: int, tasks: list[int]) -> Sequence[Record]:
        """Training records of a client for some tasks; client -1 is the pooled participant of a reference."""

    def skipped(self, client: int, tasks: list[int]) -> int:
        """How many records of these tasks could not be used."""

    def origin(self, task: int) -> str:
        """A name of a task's records that is theirs in every run."""

    def judged_by(self, judge: Judge) -> None:
        """From now on records that the worker's model cannot use are among those that are passed over."""


@runtime_checkable
class ScoredShards(Protocol):
    """Data with test records of their own, which are scored where they lie."""

    def begun(self, stage: int) -> list[int]:
        """The tasks whose stage has come."""

    def score(self, dataset: str, texts: list[str]) -> float:
        """Score of the answers to a task's test records."""


class OwnShards(Shards, ScoredShards, Protocol):
    """A site's own stream of tasks."""

    def learning(self, turns: str) -> OwnShards:
        """The same tasks for a run with this ``data.turns``."""


@runtime_checkable
class PersonalShards(Protocol):
    """Shards of which some records are kept out of training, for questions to the client's own models."""

    def own_questions(self, client: int, tasks: list[int]) -> list[TestRecord]:
        """The records of a client's shard that are kept out, as questions."""

    def scorer(self, tasks: list[int]) -> str:
        """The rule that answers to them are scored by, the same for all data sets of the tasks."""

    def longest(self, tasks: list[int]) -> int | None:
        """Longest answer to them in tokens, if the data sets set one."""


class BenchmarkShards:
    """Shards of a benchmark, divided among the clients of an experiment."""

    def __init__(self, config: RunConfig, render: bool = False) -> None:
        """Open the benchmark; ``render`` makes a mini benchmark's files if they are not there."""
        self.benchmark: Benchmark = open_benchmark(config)
        if render and self.benchmark.spec.source == "mini":
            self.benchmark.prepare([name for task in self.benchmark.tasks for name in task])
        for name, owner in self.benchmark.held_out.items():
            if render and owner.spec.source == "mini":
                owner.prepare([name])

    @property
    def image_root(self) -> Path:
        return self.benchmark.image_root

    def tasks(self, stage: int, ordered: list[int]) -> list[int]:
        return ordered

    def records(self, client: int, tasks: list[int]) -> Sequence[Record]:
        if client < 0:
            return joined([self.benchmark.pooled(task) for task in tasks])
        return joined([self.benchmark.shard(client, task) for task in tasks])

    def skipped(self, client: int, tasks: list[int]) -> int:
        return sum(self.benchmark.skipped(client, task) for task in tasks)

    def origin(self, task: int) -> str:
        return f"{self.benchmark.name}/{task}"

    def judged_by(self, judge: Judge) -> None:
        self.benchmark.judge = judge

    def own_questions(self, client: int, tasks: list[int]) -> list[TestRecord]:
        return [question for task in tasks for question in self.benchmark.own_questions(client, task)]

    def scorer(self, tasks: list[int]) -> str:
        rules = {self.benchmark.datasets[name].scorer for task in tasks for name in self.benchmark.tasks[task]}
        if len(rules) > 1:
            raise ConfigError(
                f"evaluation.personal: tasks {tasks} have data sets of different rules ({', '.join(sorted(rules))}), "
                "and a client's records do not say which they are of; leave evaluation.personal out"
            )
        return rules.pop()

    def longest(self, tasks: list[int]) -> int | None:
        sets = [self.benchmark.datasets[name] for task in tasks for name in self.benchmark.tasks[task]]
        return max((each.max_new_tokens for each in sets if each.max_new_tokens), default=None)

    def test(self, dataset: str) -> Sequence[TestRecord]:
        return self.benchmark.test(dataset)

    def question_images(self, dataset: str) -> Path:
        return self.benchmark.owner(dataset).image_root

    def max_new_tokens(self, dataset: str) -> int | None:
        return self.benchmark.owner(dataset).datasets[dataset].max_new_tokens
