"""How long the missing runs of a bench will take, by those that are finished or, where there are none, by formula."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcit.bench import folders
from fcit.bench.plan import Planned, Row
from fcit.config import RunConfig
from fcit.doctor.command import Estimates
from fcit.errors import FCITError
from fcit.io.files import read_json
from fcit.runs.folder import RunDir

#: Seconds of a run by formula; None: not known.
Formula = Callable[[RunConfig], float | None]
_COMPARED = 4  # finished rows that the formula is compared with


@dataclass(frozen=True)
class Expected:
    """What missing runs will take.

    Attributes:
        seconds: by name of the run's folder; None: not known.
        jobs: runs at a time.
        known: how it is known.
    """

    seconds: dict[str, float | None]
    jobs: int
    known: str

    @property
    def together(self) -> float:
        """Seconds until all are done: shared out evenly, and no less than the longest one takes."""
        each = [seconds for seconds in self.seconds.values() if seconds is not None]
        return max(sum(each) / self.jobs, max(each, default=0.0))

    @property
    def unknown(self) -> int:
        """Runs of which nothing is known."""
        return sum(seconds is None for seconds in self.seconds.values())


def spent(run: Planned) -> float | None:
    """Seconds that a finished run took, over all of its starts; None if it does not say."""
    try:
        parts = read_json(RunDir(run.folder).results).get("seconds", {})
        return float(sum(parts.values())) or None
    except (FCITError, AttributeError, TypeError):
        return None


def expected(runs: Sequence[Planned], chosen: Sequence[Planned], jobs: int, formula: Formula | None = None) -> Expected:
    """What the runs of a bench that are not finished will take.

    As long as other seeds of their row took (the median); else what the formula says, times the factor by which it was
    wrong about finished rows (the median of a few); else what it says.

    Args:
        runs: of the whole bench.
        chosen: those that are asked about; finished ones among them are left out.
    """
    formula = formula or Estimates().of
    took: dict[str, list[float]] = {}
    rows: dict[str, Row] = {}
    for run in runs:
        seconds = spent(run) if folders.state(run) == "done" else None
        if seconds is not None:
            took.setdefault(run.row.slug, []).append(seconds)
        rows[run.row.slug] = run.row
    missing = [run for run in chosen if folders.state(run) != "done"]
    lacking = dict.fromkeys(run.row.slug for run in missing if run.row.slug not in took)
    factor = _factor({slug: statistics.median(took[slug]) for slug in took}, rows, formula) if lacking else 1.0
    guessed = {slug: formula(rows[slug].config) for slug in lacking}
    by_row: dict[str, float | None] = {slug: statistics.median(values) for slug, values in took.items()}
    by_row |= {slug: None if seconds is None else seconds * factor for slug, seconds in guessed.items()}
    count = sum(map(len, took.values()))
    known = [f"{count} finished run{'s' * (count > 1)}"] if took else []
    known += ["formula"] if lacking else []
    return Expected({run.name: by_row[run.row.slug] for run in missing}, jobs, " and ".join(known))


def _factor(took: dict[str, float], rows: dict[str, Row], formula: Formula) -> float:
    """How much longer finished rows took than the formula says; 1 without any."""
    ratios = []
    for slug, seconds in list(took.items())[:_COMPARED]:
        said = formula(rows[slug].config)
        if said:
            ratios.append(seconds / said)
    return statistics.median(ratios) if ratios else 1.0
