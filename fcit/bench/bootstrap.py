"""How sure a difference between two rows is: a paired bootstrap over test records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fcit import seeding
from fcit.errors import RunError
from fcit.results import Run

RESAMPLES = 10_000
CHUNK = 4_000_000  # counts held at once
LEVEL = 0.95

#: Marks by record, for one dataset of one run; a record is its id and how often the id came before.
Marks = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Difference:
    """Row minus baseline in points of Last over the datasets that can be compared, with its interval."""

    estimate: float
    low: float
    high: float
    by_seed: dict[int, float]
    datasets: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # dataset -> why


def marks_of(run: Run, dataset: str) -> Marks | str:
    """The marks behind a score of the last evaluated stage, or why there are none."""
    stage = max(n for n, row in enumerate(run.matrix.scores, start=1) if row)
    try:
        predictions = run.predictions(dataset, stage)
    except RunError:
        return "its predictions are missing"
    if any(p.mark is None for p in predictions):
        return "its score is of the whole corpus"
    seen: Counter[str] = Counter()
    marks: Marks = {}
    for p in predictions:
        marks[p.question_id, seen[p.question_id]] = float(p.mark or 0.0)
        seen[p.question_id] += 1
    mean = 100.0 * sum(marks.values()) / max(1, len(marks))
    if abs(mean - run.matrix.scores[stage - 1][dataset]) > 1e-3:
        return "its score is not the mean of its marks"
    return marks


def resampled_means(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of ``resamples`` draws of n differences with replacement.

    How often each distinct difference is drawn is multinomial, so the records themselves need not be
    drawn: with marks of 0 and 1 there are three counts, however many records.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    step = max(1, CHUNK // len(values))
    parts = [
        rng.multinomial(n, counts / n, size=min(step, resamples - at)) @ values for at in range(0, resamples, step)
    ]
    return np.concatenate(parts) / n


def interval(
    cells: dict[int, dict[str, np.ndarray]], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Estimate and percentile interval of mean over seeds of mean over datasets of mean difference, times 100.

    Args:
        cells: seed -> dataset -> differences of marks, record by record. Each is a stratum.
    """
    estimate, total = 0.0, np.zeros(resamples)
    for datasets in cells.values():
        for differences in datasets.values():
            share = 100.0 / (len(cells) * len(datasets))
            estimate += share * float(differences.mean())
            total += share * resampled_means(differences, rng, resamples)
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return estimate, float(low), float(high)


def difference(label: str, row: dict[int, Run], baseline: dict[int, Run]) -> Difference | None:
    """A row against the baseline, over the seeds both have; None where nothing can be compared.

    A dataset is left out, with the reason, unless it can be compared for every seed.
    """
    seeds = sorted(set(row) & set(baseline))
    if not seeds:
        return None
    left_out: dict[str, str] = {}
    cells: dict[int, dict[str, np.ndarray]] = {seed: {} for seed in seeds}
    names = [d for d in row[seeds[0]].matrix.datasets if d in _last_row(row[seeds[0]])]
    for dataset in names:
        for seed in seeds:
            ours, theirs = marks_of(row[seed], dataset), marks_of(baseline[seed], dataset)
            if isinstance(ours, str) or isinstance(theirs, str):
                left_out[dataset] = ours if isinstance(ours, str) else str(theirs)
            elif set(ours) != set(theirs):
                left_out[dataset] = "the two rows answered different records"
            else:
                cells[seed][dataset] = np.array([ours[key] - theirs[key] for key in sorted(ours)])
    kept = [name for name in names if name not in left_out]
    if not kept:
        return None
    cells = {seed: {name: found[name] for name in kept} for seed, found in cells.items()}
    # The owner of the draws is the pair of rows: another row in the table changes nothing.
    rng = seeding.generator(0, "bench", label)
    by_seed = {s: 100.0 * float(np.mean([d.mean() for d in found.values()])) for s, found in cells.items()}
    return Difference(*interval(cells, rng), by_seed, tuple(kept), left_out)


def _last_row(run: Run) -> dict[str, float]:
    return next((row for row in reversed(run.matrix.scores) if row), {})
