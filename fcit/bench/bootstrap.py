"""Confidence intervals of the difference between two rows: a paired bootstrap over test records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fcit import registry, seeding
from fcit.data.benchmark import open_benchmark
from fcit.errors import FCITError, RunError
from fcit.evaluation.scorers import corpus_of
from fcit.runs.reader import Run

RESAMPLES = 10_000
CHUNK = 4_000_000  # counts in memory at a time
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Row minus baseline in points of Last over the comparable data sets, with its interval."""

    estimate: float
    low: float
    high: float
    by_seed: dict[int, float]
    datasets: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # data set -> reason


@dataclass(frozen=True)
class Answered:
    """One dataset of one run: ``keys`` (a record's id and its number of earlier occurrences) and ``values`` ``(N, k)``.

    ``score`` computes 0..100 from sums of ``values`` over a number of records.
    """

    keys: tuple[tuple[str, int], ...]
    values: np.ndarray
    score: Callable[[np.ndarray, int], np.ndarray]


def mean_mark(sums: np.ndarray, count: int) -> np.ndarray:
    """The score of rules that mark every answer."""
    return 100.0 * sums[..., 0] / count


@lru_cache(maxsize=256)  # a baseline's are needed for every row
def answered(run: Run, dataset: str) -> Answered | str:
    """The answers of the last evaluated stage, or why their score cannot be compared."""
    stage = max(n for n, row in enumerate(run.matrix.scores, start=1) if row)
    try:
        predictions = run.predictions(dataset, stage)
    except RunError:
        return "its predictions are missing"
    seen: Counter[str] = Counter()
    keys = []
    for p in predictions:
        keys.append((p.question_id, seen[p.question_id]))
        seen[p.question_id] += 1
    if all(p.mark is not None for p in predictions):
        values, score = np.array([[float(p.mark or 0.0)] for p in predictions]), mean_mark
    else:
        parts = _decomposed(run.path, dataset, tuple(p.text for p in predictions))
        if parts is None:
            return "its score is of the whole corpus"
        values, score = parts
    if abs(float(score(values.sum(axis=0), len(keys))) - run.matrix.scores[stage - 1][dataset]) > 1e-3:
        return "its score cannot be rebuilt from its answers"
    return Answered(tuple(keys), values, score)


@lru_cache(maxsize=256)
def _decomposed(path: Path, dataset: str, texts: tuple[str, ...]) -> tuple[np.ndarray, Any] | None:
    """Answers as rows that add up, and the score of their sums; None if the rule has no such decomposition."""
    try:
        benchmark = open_benchmark(Run(path).config)
        corpus = corpus_of(registry.resolve("scorer", benchmark.spec.datasets[dataset].scorer))
        if corpus is None or corpus.parts is None or corpus.score is None:
            return None
        records = benchmark.test(dataset)
    except (FCITError, KeyError):
        return None  # the data are no longer there
    return (corpus.parts(texts, records), corpus.score) if len(records) == len(texts) else None


@dataclass(frozen=True)
class Cell:
    """Two runs' answers to the same records of one dataset: a stratum."""

    row: Answered
    baseline: Answered

    @property
    def estimate(self) -> float:
        """Difference of the scores."""
        count = len(self.row.keys)
        return float(self._score(self.row.values.sum(axis=0), self.baseline.values.sum(axis=0), count))

    def _score(self, row: np.ndarray, baseline: np.ndarray, count: int) -> np.ndarray:
        return self.row.score(row, count) - self.baseline.score(baseline, count)

    def draws(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        """Differences of ``resamples`` draws of the records with replacement, the same records for both."""
        if self.row.score is mean_mark:
            return 100.0 * resampled_means(self.row.values[:, 0] - self.baseline.values[:, 0], rng, resamples)
        count = len(self.row.keys)
        step = max(1, CHUNK // count)
        parts = []
        for at in range(0, resamples, step):
            often = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - at))
            parts.append(self._score(often @ self.row.values, often @ self.baseline.values, count))
        return np.concatenate(parts)


def resampled_means(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of ``resamples`` draws of n differences with replacement.

    The number of draws of each distinct difference is multinomial, so the records themselves need not be
    drawn: with marks of 0 and 1 there are three counts for any number of records.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    step = max(1, CHUNK // len(values))
    parts = [
        rng.multinomial(n, counts / n, size=min(step, resamples - at)) @ values for at in range(0, resamples, step)
    ]
    return np.concatenate(parts) / n


def interval(
    cells: dict[int, dict[str, Cell]], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Estimate and percentile interval of mean over seeds of mean over datasets of the difference of scores.

    Args:
        cells: seed -> dataset -> answers of both. Each is a stratum.
    """
    estimate, total = 0.0, np.zeros(resamples)
    for datasets in cells.values():
        for cell in datasets.values():
            share = 1.0 / (len(cells) * len(datasets))
            estimate += share * cell.estimate
            total += share * cell.draws(rng, resamples)
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return estimate, float(low), float(high)


def difference(label: str, row: dict[int, Run], baseline: dict[int, Run]) -> Difference | None:
    """A row against the baseline, over their common seeds; None if no data set can be compared.

    A data set is left out, with the reason, unless it can be compared for every seed.
    """
    seeds = sorted(set(row) & set(baseline))
    if not seeds:
        return None
    left_out: dict[str, str] = {}
    cells: dict[int, dict[str, Cell]] = {seed: {} for seed in seeds}
    names = [d for d in row[seeds[0]].matrix.datasets if d in _last_row(row[seeds[0]])]
    for dataset in names:
        for seed in seeds:
            row_answers, baseline_answers = answered(row[seed], dataset), answered(baseline[seed], dataset)
            if isinstance(row_answers, str) or isinstance(baseline_answers, str):
                left_out[dataset] = row_answers if isinstance(row_answers, str) else str(baseline_answers)
            elif row_answers.keys != baseline_answers.keys:
                left_out[dataset] = "the two rows answered different records"
            else:
                cells[seed][dataset] = Cell(row_answers, baseline_answers)
    kept = [name for name in names if name not in left_out]
    if not kept:
        return None
    cells = {seed: {name: by_dataset[name] for name in kept} for seed, by_dataset in cells.items()}
    # Draws are seeded by the pair of rows, so that other rows of the table do not change them.
    rng = seeding.generator(0, "bench", label)
    by_seed = {s: float(np.mean([cell.estimate for cell in by_dataset.values()])) for s, by_dataset in cells.items()}
    return Difference(*interval(cells, rng), by_seed, tuple(kept), left_out)


def _last_row(run: Run) -> dict[str, float]:
    return next((row for row in reversed(run.matrix.scores) if row), {})
