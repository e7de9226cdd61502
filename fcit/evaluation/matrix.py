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

    Attributes:
        unseen: scores of data sets of later stages (``evaluation.unseen``), by the stage after which they were asked,
            numbered from 1; 0: before the first, of the untouched model. No figure of :meth:`summary`'s first five
            looks at them.
        held_out: scores of data sets that are never trained (``evaluation.held_out``), likewise.
    """

    datasets: list[str]
    scores: list[dict[str, float]] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)
    contents: list[dict[str, float]] = field(default_factory=list)
    unseen: dict[int, dict[str, float]] = field(default_factory=dict)
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, datasets: list[str], scores: list[dict[str, float]], untrained: dict[str, dict[str, float]], **forms: Any
    ) -> AccuracyMatrix:
        """The matrix of a run's rows.

        Args:
            untrained: of data sets not trained (yet), by stage from 1, "0" before the first.
            forms: ``shares`` and ``contents``.
        """
        unseen, held_out = (
            {
                int(stage): part
                for stage, row in untrained.items()
                if (part := {name: score for name, score in row.items() if (name in datasets) is trained_later})
            }
            for trained_later in (True, False)
        )
        return cls(datasets, scores, unseen=unseen, held_out=held_out, **forms)

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
        last = max(self.evaluated, default=0) - 1
        known = 0 <= last < len(self.contents) and self.contents[last].keys() == self.scores[last].keys()
        return _mean(list(self.shares[last].values())) if known else None

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

    # ------------------------------------------------------------------ data sets that are not trained (yet)

    def _before(self, dataset: str) -> list[int]:
        """The stages, from 1 on, that were over before a data set was trained; all so far if it was not yet."""
        first = self._first(dataset)
        return list(range(1, 1 + (len(self.scores) if first is None else first)))

    def _unseen(self, untouched: bool) -> float | None:
        """Mean over data sets of the mean over the stages before they are trained, perhaps minus the untouched's."""
        if not self.whole:
            return None
        means = []
        for j in self.datasets:
            scores = [self.unseen[t][j] for t in self._before(j) if j in self.unseen.get(t, {})]
            zero = self.unseen.get(0, {}).get(j) if untouched else 0.0
            if scores and zero is not None:
                means.append(sum(scores) / len(scores) - zero)
        return _mean(means)

    @property
    def unseen_mean(self) -> float | None:
        """Zero-shot transfer: mean over data sets with t_j > 1 of the mean over stages 1 <= t < t_j of a[t, j].

        The upper triangle of the matrix, data set by data set, with nothing subtracted; ZSCL's "Transfer" (Zheng et
        al., ICCV 2023). What DISCO's paper averages as zero-shot transfer to unseen tasks is not stated; its figures
        are of this kind, not differences.
        """
        return self._unseen(untouched=False)

    @property
    def unseen_gain(self) -> float | None:
        """The same minus the untouched model's score on the data set, a[0, j]."""
        return self._unseen(untouched=True)

    @property
    def fwt(self) -> float | None:
        """FWT: mean over data sets with t_j > 1 of a[t_j - 1, j] - a[0, j], right before they are trained.

        As GEM defines it (Lopez-Paz and Ranzato, NeurIPS 2017), with the untouched pre-trained model in place of one at
        random initialisation.
        """
        if not self.whole:
            return None
        firsts = ((j, self._first(j)) for j in self.datasets)
        # Rows count from 0, stages from 1: the stage before the one of row t is number t.
        pairs = [(self.unseen.get(t, {}).get(j), self.unseen.get(0, {}).get(j)) for j, t in firsts if t]
        return _mean([before - zero for before, zero in pairs if before is not None and zero is not None])

    @property
    def held_out_names(self) -> list[str]:
        """The held-out data sets."""
        return list(dict.fromkeys(name for row in self.held_out.values() for name in row))

    @property
    def general(self) -> float | None:
        """General ability: mean over the held-out data sets after the last stage that they were asked after."""
        last = max(self.held_out, default=0)
        return _mean(list(self.held_out[last].values())) if last else None

    @property
    def general_lost(self) -> float | None:
        """What was lost of it: mean over the held-out data sets of a[0, j] - a[T, j]; below 0 it was gained."""
        start, last = self.held_out.get(0, {}), self.held_out.get(max(self.held_out, default=0), {})
        return _mean([start[j] - last[j] for j in last if j in start]) if last is not start else None

    def untrained(self) -> dict[str, float | None]:
        """Figures about data sets that were not trained (yet), by name; those of which none was asked are left out."""
        unseen = {"unseen": self.unseen_mean, "unseen gain": self.unseen_gain, "FWT": self.fwt}
        held_out = {"general": self.general, "general lost": self.general_lost}
        return (unseen if self.unseen else {}) | (held_out if self.held_out else {})

    # ------------------------------------------------------------------ all of it

    def summary(self) -> dict[str, float | None]:
        """All figures by name; those of :meth:`untrained` last."""
        figures = {"Last": self.last, "Avg": self.avg, "MFT": self.mft, "BWT": self.bwt, "forgetting": self.forgetting}
        return {**figures, **self.untrained()}

    def form_summary(self) -> dict[str, float | None]:
        """All figures about the form of answers by name; empty where nothing is known of it."""
        if not any(self.contents):
            return {}
        return dict(zip(FORM_FIGURES, (self.share, self.content_forgetting, self.form_forgetting), strict=True))

    def to_json(self) -> dict[str, object]:
        """As :meth:`from_json` reads it, with all figures; what was not asked, or not known of forms, is left out."""
        forms = {"form_shares": self.shares, "content_scores": self.contents} if any(self.contents) else {}
        parts = {"unseen_scores": self.unseen, "held_out_scores": self.held_out}
        asked = {key: {str(t): row for t, row in rows.items()} for key, rows in parts.items() if rows}
        figures = self.summary() | self.form_summary()
        return {"datasets": self.datasets, "scores": self.scores, **forms, **asked, **figures}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> AccuracyMatrix:
        """The matrix of a ``matrix.json``, also of older runs."""
        shares, contents = ([dict(row) for row in raw.get(key, [])] for key in ("form_shares", "content_scores"))
        unseen, held_out = (
            {int(t): dict(row) for t, row in raw.get(key, {}).items()} for key in ("unseen_scores", "held_out_scores")
        )
        scores = [dict(row) for row in raw["scores"]]
        return cls(list(raw["datasets"]), scores, shares, contents, unseen, held_out)
