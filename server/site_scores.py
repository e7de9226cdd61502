"""Evaluation where the tasks are the sites' own: the server knows stage and round, each site knows its tasks.

After a stage every site scores the test splits of its own tasks with the broadcast subspaces and
reports one score and one count per task, under the task's number. Nothing else comes back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from flwr.app import Message

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import CodecError, ConfigError, Unanswered
from fcit.evaluation.scorers import LARGEST
from fcit.federation import codec
from fcit.federation.messages import SiteScores
from fcit.methods.base import Method, ServerState
from fcit.runs.folder import RunDir
from server.checkpoint import Progress
from server.courier import Courier
from server.orders import Orders
from server.validation import short

_TASK = re.compile(r"0|[1-9][0-9]{0,3}")  # a task's number as a site writes it


def refuse(config: RunConfig, method: Method) -> None:
    """Refuse a method that needs something that stays at the sites.

    Raises:
        ConfigError: it pools the data, or needs the true task at inference.
    """
    if method.pooled or method.needs_task_at_inference:
        raise ConfigError(
            f"stream: 'site' keeps data and tasks at the sites, which method: {config.method['name']!r} needs to see; "
            "choose another method, or stream: benchmark"
        )


class SiteEvaluation:
    """Has every connected site score the test questions of its own tasks."""

    def __init__(
        self,
        config: RunConfig,
        stream: Stream,
        run: RunDir,
        orders: Orders,
        courier: Courier,
        say: Callable[..., None],
    ) -> None:
        refuse(config, orders.method)
        self.stream, self.run, self.orders, self.courier, self.say = stream, run, orders, courier, say

    def begin(self) -> None:
        """Write the event ``data``, which is empty: the data are at the sites."""
        self.say("data", tokens={}, formats={}, warnings=self.stream.warnings)

    def by_site(self, progress: Progress) -> dict[str, object]:
        """Per-site and worst-site scores after the last stage, for ``results.json``."""
        return summary(progress.rows[-1]) if progress.rows else {}

    def due(self, progress: Progress) -> list[str]:
        """The columns that got a score in this stage, by site and task."""
        return sorted(progress.row, key=lambda name: tuple(map(int, name.split("."))))

    def columns(self, progress: Progress) -> list[str]:
        """The columns of the last evaluated row: sites that have left do not count."""
        return next((list(row) for row in reversed(progress.rows) if row), [])

    def begins(self, progress: Progress) -> bool:
        """False: nothing is asked of the untouched model; the checks of a configuration refuse to want it."""
        return False

    def before(self, state: ServerState, progress: Progress) -> None:
        """Nothing, see :meth:`begins`."""

    def stage(self, state: ServerState, progress: Progress) -> None:
        """Gather the scores; a site that sends none has an empty cell in this row, and an event says so.

        Raises:
            Unanswered: no site sent a usable score.
        """
        if not self.orders.evaluates(progress.stage):
            return
        clients = {node: self.courier.client(node) for node in self.courier.nodes}
        orders = [(node, self.orders.score(state, progress, c)) for node, c in clients.items() if c is not None]
        missing = {c for c in clients.values() if c is not None}
        for reply in self.courier.send("query.score", orders, f"{progress.stage}.score"):
            client = self.courier.client(reply.metadata.src_node_id)
            scores = self._read(reply, client)
            missing.discard(client if client is not None else -1)
            if isinstance(scores, str):
                self.say("evaluate-failed", client=client, stage=progress.stage, reason=short(scores))
                continue
            progress.row |= {column(scores.client, task): score for task, score in scores.scores.items()}
            progress.extra |= {column(scores.client, task): {} for task in scores.scores}
            progress.samples += sum(scores.counts.values())
            progress.answer_seconds = round(progress.answer_seconds + scores.seconds, 4)
            self.say(
                "scored",
                stage=progress.stage,
                dataset=f"site {scores.client}",
                seconds=round(scores.seconds, 3),
                score=sum(scores.scores.values()) / len(scores.scores),
                counts=scores.counts,
            )
        for client in sorted(missing):
            self.say("evaluate-failed", client=client, stage=progress.stage, reason="no answer")
        if not progress.row:
            raise Unanswered(
                f"stage {progress.stage + 1}: no site sent a usable score (events evaluate-failed in "
                f"{self.run.events}); `fcit resume {self.run.path}` tries again"
            )

    def _read(self, reply: Message, client: int | None) -> SiteScores | str:
        """Scores, or why they are rejected."""
        if reply.has_error():
            return str(reply.error.reason)
        try:
            scores = codec.decode(reply.content, SiteScores, reply=True)
        except CodecError as error:
            return str(error)
        if scores.client != client:
            return f"answered for client {scores.client}"
        return reject_reason(scores) or scores


def column(client: int, task: str) -> str:
    """Name of a site's task in the accuracy matrix: ``2.0`` is site 2's first task."""
    return f"{client}.{task}"


def reject_reason(scores: SiteScores) -> str | None:
    """Why a site's scores are rejected, or None."""
    if not scores.scores or set(scores.scores) != set(scores.counts):
        return "scores and counts must name the same tasks, at least one"
    for task, score in scores.scores.items():
        if not _TASK.fullmatch(task):
            return f"tasks are numbered, got {task[:40]!r}"
        if not (math.isfinite(score) and 0 <= score <= LARGEST * (1 + 1e-9)):  # a sum may end a bit above
            return f"the score of task {task} is {score}, not between 0 and {LARGEST:.0f}"
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
    return {site: sum(scores) / len(scores) for site, scores in sites.items()}


def summary(row: dict[str, float]) -> dict[str, object]:
    """Per-site and worst-site scores, for ``results.json``."""
    sites = by_site(row)
    if not sites:
        return {}
    worst = min(sites, key=lambda site: sites[site])
    return {"sites": sites, "worst_site": {"site": worst, "score": sites[worst]}}
