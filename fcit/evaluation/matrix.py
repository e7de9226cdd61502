"""The accuracy matrix and the figures read off it."""

from __future__ import annotations

from dataclasses import dataclass, field


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def over(stages: list[int]) -> str:
    """The name of an Avg over these stages only, numbered from 1."""
    return f"Avg over stages {', '.join(map(str, stages))}"


@dataclass
class AccuracyMatrix:
    """``scores[stage][dataset]``; a stage that was not evaluated is an empty row.

    t_j is the first stage whose row holds dataset j, T the last evaluated stage. MFT, BWT and forgetting look at the
    score right after a dataset was learnt and at the best one since, so they are None where a stage is missing. Avg
    over some of the stages is another figure than Avg: :attr:`avg_name` says which.
    """

    datasets: list[str]
    scores: list[dict[str, float]] = field(default_factory=list)

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
    def forgetting(self) -> float | None:
        """Mean over datasets with t_j < T of (best score before the last stage) - a[T, j]."""
        if not self.whole:
            return None
        final = len(self._rows) - 1
        drops = []
        for j in self.datasets:
            first = self._first(j)
            if first is not None and first < final:
                best = max(self._rows[t][j] for t in range(first, final) if j in self._rows[t])
                drops.append(best - self._rows[final][j])
        return _mean(drops)

    def summary(self) -> dict[str, float | None]:
        """All figures by name."""
        return {"Last": self.last, "Avg": self.avg, "MFT": self.mft, "BWT": self.bwt, "forgetting": self.forgetting}

    def to_json(self) -> dict[str, object]:
        return {"datasets": self.datasets, "scores": self.scores, **self.summary()}

    @classmethod
    def from_json(cls, raw: dict) -> AccuracyMatrix:
        return cls(list(raw["datasets"]), [dict(row) for row in raw["scores"]])
