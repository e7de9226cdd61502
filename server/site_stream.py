"""What stands in for a benchmark when every site brings its own tasks."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.spec import without_data


class SiteStream(Benchmark):
    """Stages and nothing else: tasks, records and questions are the sites' own."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(without_data(), Path(), config)

    @cached_property
    def stages(self) -> list[list[int]]:
        """``federation.stages`` of them; none names a task."""
        return [[] for _ in range(self.config.federation.stages)]

    def evaluation(self, stage: int) -> list[str]:
        """The server has no questions."""
        return []

    def prepare(self, names: list[str] | None = None) -> None:
        """The data are at the sites."""
