"""Accuracy against hours, simulated or real: what a run had learnt when its clock said so."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fcit.report.scope import groups
from fcit.runs.reader import Run

HOUR = 3600.0


#: Clocks that a run may have, by their entry in ``results.json``, with what their hours are called.
SIMULATED, REAL = "simulated", "real_time"
_CALLED = {SIMULATED: "simulated hours", REAL: "real hours"}


def curve(run: Run, clock: str = SIMULATED) -> list[tuple[float, float]]:
    """Hours and mean score of the data sets seen so far, after every evaluated stage; empty without that clock.

    Evaluation takes no simulated time; real time has it.
    """
    stages = run.results.get(clock, {}).get("stages", []) if run.finished else []
    rows = zip(stages, run.matrix.scores, strict=False)
    return [(seconds / HOUR, sum(row.values()) / len(row)) for seconds, row in rows if row]


def labelled(axis: Axes, title: str, clock: str = SIMULATED) -> None:
    """Name the axes of such a picture."""
    axis.set(title=title, xlabel=_CALLED[clock], ylabel="mean score of datasets seen", ylim=(-2, 102))
    axis.set_xlim(left=0)
    axis.legend()


def against_hours(runs: list[Run], clock: str = SIMULATED) -> Figure:
    """One line per run, a point for every evaluated stage; comparable runs share a panel."""
    parts = groups(runs)
    figure = Figure(figsize=(6.4 * len(parts), 3.2), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, members) in zip(axes, parts, strict=True):
        for run in members:
            axis.plot(*zip(*curve(run, clock), strict=True), marker="o", label=f"{run.name} ({run.method})")
        labelled(axis, title, clock)
    return figure
