"""The accuracy matrix and the figures read off it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Figures about the form of answers (:meth:`AccuracyMatrix.form_summary`).
FORM_FIGURES = ("form share", "content forgetting", "form forgetting")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def over(stages: list[int]) -> str:
    """The name of an Avg over these stages only, numbered from 1."""
    return f"Avg over stages {', '.join(map(str, stages))}"


class Loss(NamedTuple):
    """What a dataset lost from the stage of its best score before the last one: of its score, and of its content."""

    score: float
    content: float | None  # None: unknown

    @property
    def form(self) -> float | None:
        """What it lost beyond its content: the form alone (superficial forgetting)."""
        return None if self.content is None else self.score - self.content


@dataclass
class AccuracyMatrix:
    """``scores[stage][dataset]``; a stage that was not evaluated is an empty row.

    t_j is the first stage whose row holds dataset j, T the last evaluated stage. MFT, BWT and forgetting look at the
    score right after a dataset was learnt and at the best one since, so they are None where a stage is missing. Avg
    over some of the stages is another figure than Avg: :attr:`avg_name` says which.

    ``shares`` and ``contents`` are the same of the form of answers (:mod:`fcit.evaluation.following`): the share that
    has the form demanded, of the datasets that demand one, and the score of the normalised answers. Both are empty in
    older run folders and where sites score their own tasks.
    """

    datasets: list[str]
    scores: list[dict[str, float]] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)
    contents: list[dict[str, float]] = field(default_factory=list)

    @property
    def _rows(self) -> list[dict[str, float]]:
        return [row for row in self.scores if row]

    @property
    def evaluated(self) -> list[int]:
        """The stages that were evaluated, numbered from 1."""
        return [number for number, row in enumerate(self.scores, start=1) if row]

    @property
    def whole(self) -> bool:
        """Whether no stage is missing, so far."""
        return len(self._rows) == len(self.scores)

    def _first(self, dataset: str) -> int | None:
        return next((t for t, row in enumerate(self._rows) if dataset in row), None)

    @property
    def last(self) -> float | None:
        """Last (also MFN): mean of the last row."""
        return _mean(list(self._rows[-1].values())) if self._rows else None

    @property
    def avg(self) -> float | None:
        """Avg (also MAA): mean over the evaluated stages of the mean over the datasets seen so far.

        None where one stage of several was evaluated: that is Last, and no average over the course.
        """
        if len(self._rows) == 1 and not self.whole:
            return None
        return _mean([sum(row.values()) / len(row) for row in self._rows])

    @property
    def avg_name(self) -> str:
        """What tables call Avg: with the stages it is over where some are missing."""
        return "Avg" if self.avg is None or self.whole else over(self.evaluated)

    @property
    def mft(self) -> float | None:
        """MFT: mean of a[t_j, j], the score when a dataset was first seen."""
        if not self.whole:
            return None
        firsts = [(j, self._first(j)) for j in self.datasets]
        return _mean([self._rows[t][j] for j, t in firsts if t is not None])

    @property
    def bwt(self) -> float | None:
        """BWT: mean over datasets with t_j < T of a[T, j] - a[t_j, j]."""
        if not self.whole:
            return None
        final = len(self._rows) - 1
        firsts = [(j, self._first(j)) for j in self.datasets]
        return _mean([self._rows[final][j] - self._rows[t][j] for j, t in firsts if t is not None and t < final])

    @property
    def losses(self) -> dict[str, Loss]:
        """The loss of every dataset with t_j < T, if no stage is missing.

        Score: (best score before the last stage) - a[T, j]. Content: the same difference, between the same two stages,
        of the normalised answers' score.
        """
        losses: dict[str, Loss] = {}
        final = len(self.scores) - 1
        for j in self.datasets if self.whole else ():
            stages = [t for t in range(final) if j in self.scores[t]]
            if stages and j in self.scores[final]:
                best = max(stages, key=lambda t: self.scores[t][j])
                before, after = self._content(best, j), self._content(final, j)
                content = None if before is None or after is None else before - after
                losses[j] = Loss(self.scores[best][j] - self.scores[final][j], content)
        return losses

    def _content(self, stage: int, dataset: str) -> float | None:
        return self.contents[stage].get(dataset) if stage < len(self.contents) else None

    @property
    def forgetting(self) -> float | None:
        """Mean over datasets with t_j < T of (best score before the last stage) - a[T, j]."""
        return _mean([loss.score for loss in self.losses.values()])

    @property
    def share(self) -> float | None:
        """Share of the last row's answers that have the form demanded: mean over the datasets that demand one."""
        last = max(self.evaluated, default=0)
        return _mean(list(self.shares[last - 1].values())) if 0 < last <= len(self.shares) else None

    @property
    def content_forgetting(self) -> float | None:
        """The part of forgetting that normalising the answers does not bring back; None if unknown of a dataset."""
        contents = [loss.content for loss in self.losses.values()]
        return None if None in contents else _mean([content for content in contents if content is not None])

    @property
    def form_forgetting(self) -> float | None:
        """The rest: forgetting minus :attr:`content_forgetting`."""
        total, content = self.forgetting, self.content_forgetting
        return None if total is None or content is None else total - content

    def summary(self) -> dict[str, float | None]:
        """All figures by name."""
        return {"Last": self.last, "Avg": self.avg, "MFT": self.mft, "BWT": self.bwt, "forgetting": self.forgetting}

    def form_summary(self) -> dict[str, float | None]:
        """All figures about the form of answers by name; empty where nothing is known of it."""
        if not any(self.contents):
            return {}
        return dict(zip(FORM_FIGURES, (self.share, self.content_forgetting, self.form_forgetting), strict=True))

    def to_json(self) -> dict[str, object]:
        forms = {"form_shares": self.shares, "content_scores": self.contents} if any(self.contents) else {}
        return {"datasets": self.datasets, "scores": self.scores, **forms, **self.summary(), **self.form_summary()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> AccuracyMatrix:
        shares, contents = ([dict(row) for row in raw.get(key, [])] for key in ("form_shares", "content_scores"))
        return cls(list(raw["datasets"]), [dict(row) for row in raw["scores"]], shares=shares, contents=contents)
