"""Runs over the sites' own streams: the server knows stage and round, each site knows its tasks.

After a stage every site scores the test splits of its own tasks with the broadcast subspaces and
reports one score and one count per task, under the task's number. Nothing else comes back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from types import SimpleNamespace

from fcit.config import RunConfig
from fcit.errors import ConfigError
from fcit.federation.records import Scores

NAME = "sites"
_TASK = re.compile(r"0|[1-9][0-9]{0,3}")  # a task's number as a site writes it


@dataclass
class SiteStream:
    """What the server loop needs of a benchmark when every site brings its own tasks."""

    config: RunConfig
    spec: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name=NAME, tasks=[], datasets={}))

    @property
    def stages(self) -> list[list[int]]:
        """A stage names no tasks; its participants are sampled clients."""
        return [[] for _ in range(self.config.federation.stages)]

    def evaluation(self, stage: int) -> list[str]:
        """The server has no questions of its own."""
        return []

    def prepare(self) -> None:
        """The data are at the sites."""


def refuse(config: RunConfig, pooled: bool, told: bool) -> None:
    """Methods that would need what a site never tells.

    Args:
        pooled: the method trains on everybody's data in one place.
        told: the method is told the true task at inference.

    Raises:
        ConfigError: the method is such a reference.
    """
    if pooled or told:
        raise ConfigError(
            f"stream: 'site' keeps data and tasks at the sites, which method: {config.method['name']!r} needs to see; "
            "choose another method, or stream: benchmark"
        )


def column(client: int, task: str) -> str:
    """What a site's task is called in the accuracy matrix: ``2.0`` is site 2's first task."""
    return f"{client}.{task}"


def problem(scores: Scores) -> str | None:
    """Why a site's scores are not believed, or None."""
    if not scores.scores or set(scores.scores) != set(scores.counts):
        return "scores and counts must name the same tasks, at least one"
    for task, score in scores.scores.items():
        if not _TASK.fullmatch(task):
            return f"tasks are numbered, got {task[:40]!r}"
        if not (math.isfinite(score) and 0 <= score <= 100):
            return f"the score of task {task} is {score}, not between 0 and 100"
        if not 1 <= scores.counts[task] < 1e9:
            return f"the score of task {task} rests on {scores.counts[task]} questions"
    if not 0 <= scores.seconds < math.inf:
        return f"claims {scores.seconds} seconds"
    return None


def by_site(row: dict[str, float]) -> dict[str, float]:
    """Mean score of each site over its tasks, from a row of the matrix."""
    sites: dict[str, list[float]] = {}
    for name, score in row.items():
        sites.setdefault(name.partition(".")[0], []).append(score)
    return {site: round(sum(scores) / len(scores), 4) for site, scores in sites.items()}


def summary(row: dict[str, float]) -> dict[str, object]:
    """Per-site and worst-site scores, for ``results.json``."""
    sites = by_site(row)
    if not sites:
        return {}
    worst = min(sites, key=lambda site: sites[site])
    return {"sites": sites, "worst_site": {"site": worst, "score": sites[worst]}}
