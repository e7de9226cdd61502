"""What stands in for a benchmark when every site brings its own tasks."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.spec import BenchmarkSpec


class SiteStream(Benchmark):
    """Stages and nothing else: tasks, records and questions are the sites' own."""

    def __init__(self, config: RunConfig) -> None:
        # Not validated: a benchmark file must have tasks, and here none are known.
        super().__init__(BenchmarkSpec.model_construct(name="sites", datasets={}, tasks=[]), Path(), config)

    @cached_property
    def stages(self) -> list[list[int]]:
        """``federation.stages`` of them; none names a task."""
        return [[] for _ in range(self.config.federation.stages)]

    def evaluation(self, stage: int) -> list[str]:
        """The server has no questions."""
        return []

    def prepare(self, names: list[str] | None = None) -> None:
        """The data are at the sites."""
