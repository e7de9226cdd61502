"""Figures of a bench: accuracy against cost, and confidence intervals. Drawn like those of a report."""

from __future__ import annotations

import itertools
import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from fcit.bench.leaderboard import Line, Table
from fcit.bench.tables import marked
from fcit.report.hours import curve, labelled

COLOURS = {"": "#3a87c8", "replay": "#ff7f0e", "reference": "#8c8c8c"}  # read on white and on dark grey
MARKERS = {"": "o", "replay": "s", "reference": "D"}
MEANING = {"": "ranked", "replay": "stores samples", "reference": "reference"}
LOG_FROM = 10.0  # largest ratio of bytes on a linear axis


@dataclass(frozen=True)
class Point:
    """A row as a point of bytes and accuracy."""

    line: Line
    x: float  # MB sent and received by a client in a round
    y: float  # Last

    @property
    def deviation(self) -> float:
        last = self.line.figures["Last"]
        return (last.deviation if last is not None else None) or 0.0


def points(table: Table) -> list[Point]:
    """Rows with known traffic; references and centralised runs have no clients and so no traffic."""
    points = []
    for line in () if table.key.centralised else table.lines:
        up, down, last = line.cost["up"], line.cost["down"], line.figures["Last"]
        if line.group != "reference" and up is not None and down is not None and last is not None:
            points.append(Point(line, (up.mean + down.mean) / 1e6, last.mean))
    return points


def frontier(points: list[Point]) -> list[Point]:
    """The Pareto frontier: ranked rows that no other row with at most as many bytes exceeds, by bytes."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.line.group == ""), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _corners(best: list[Point], right: float) -> list[tuple[float, float]]:
    """The frontier as a staircase that ends at the right edge."""
    corners: list[tuple[float, float]] = []
    for point, after in zip(best, [*(p.x for p in best[1:]), right], strict=True):
        corners += [(point.x, point.y), (after, point.y)]
    return corners


def _references(axis: Any, table: Table) -> None:
    """Draw references as horizontal lines, unless they compress the rest of the figure."""
    low, high = axis.get_ylim()
    room = 0.8 * (high - low)
    beyond, levels = [], [low, high]
    for line in table.of("reference"):
        last = line.figures["Last"]
        if last is None:
            continue
        if low - room <= last.mean <= high + room:
            axis.axhline(last.mean, color=COLOURS["reference"], linewidth=0.8, linestyle=":", zorder=0)
            axis.annotate(
                f"{line.label} {last.mean:.1f}",
                (0.995, last.mean),
                xycoords=("axes fraction", "data"),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                color=COLOURS["reference"],
            )
            levels.append(last.mean)
        else:
            beyond.append(f"{line.label} {last.mean:.1f}")
    axis.set_ylim(min(levels), max(levels) + 0.06 * (max(levels) - min(levels)))
    if beyond:
        axis.set_title(f"not shown: {', '.join(beyond)}", loc="left", fontsize=8)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that each box shares with the others together.

    Args:
        boxes: ``(N, 4)``: left, bottom, right, top.
        others: ``(M, 4)``, likewise.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0.0, None).prod(axis=-1).sum(axis=-1)


#: Offsets of a label that are tried, in points: those nearest to its point first.
OFFSETS = [
    (radius, radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
    for radius, angle in itertools.product((7, 13, 20, 30, 42, 56, 72), range(0, 360, 30))
]


def _label(axis: Any, points: list[Point], corners: list[tuple[float, float]]) -> None:
    """Draw labels beside the points with the least overlap; a thin line connects distant labels."""
    renderer = FigureCanvasAgg(axis.figure).get_renderer()
    axis.figure.draw_without_rendering()
    unit = axis.figure.dpi / 72  # pixels per point
    inside = axis.get_window_extent(renderer)
    taken = [text.get_window_extent(renderer) for text in axis.texts]
    for point in points:
        x, y = axis.transData.transform((point.x, point.y))
        reach = axis.transData.transform((point.x, point.y + point.deviation))[1] - y
        taken += [_around(x, y, 2 * unit, reach), _around(x, y, 4 * unit, 4 * unit)]
    for (x, y), (right, above) in itertools.pairwise(axis.transData.transform(corners) if corners else []):
        taken.append(Bbox.from_extents(x - unit, min(y, above) - unit, right + unit, max(y, above) + unit))
    for point in sorted(points, key=lambda p: -p.y):
        text = axis.annotate(marked(point.line), (point.x, point.y), fontsize=8)
        size = text.get_window_extent(renderer)
        text.remove()
        at = axis.transData.transform((point.x, point.y))
        tries = [_beside(at + unit * np.array([dx, dy]), size, dx, dy) for _, dx, dy in OFFSETS]
        boxes = np.array([box.extents for box in tries])
        outside = size.width * size.height - _overlaps(boxes, inside.extents[None])
        radii = np.array([radius for radius, *_ in OFFSETS])
        best = int(np.argmin(_overlaps(boxes, np.array([box.extents for box in taken])) + 3 * outside + 0.2 * radii))
        radius, dx, dy = OFFSETS[best]
        _write(axis, point, dx, dy, radius)
        taken.append(tries[best].padded(unit))


def _around(x: float, y: float, across: float, up: float) -> Bbox:
    return Bbox.from_extents(x - across, y - up, x + across, y + up)


def _sides(dx: float, dy: float) -> tuple[str, str]:
    """Alignment of a text at a given offset from its point."""
    across = "left" if dx > 1 else "right" if dx < -1 else "center"
    return across, "center" if across != "center" else ("bottom" if dy > 0 else "top")


def _beside(at: Any, size: Bbox, dx: float, dy: float) -> Bbox:
    """Bounding box of a text of given size at a position."""
    across, up = _sides(dx, dy)
    x = at[0] - {"left": 0.0, "right": 1.0, "center": 0.5}[across] * size.width
    y = at[1] - {"bottom": 0.0, "top": 1.0, "center": 0.5}[up] * size.height
    return Bbox.from_bounds(x, y, size.width, size.height)


def _write(axis: Any, point: Point, dx: float, dy: float, radius: float) -> None:
    across, up = _sides(dx, dy)
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": COLOURS["reference"], "shrinkB": 3}
    text = axis.annotate(
        marked(point.line),
        (point.x, point.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=8,
        arrowprops=line if radius > 13 else None,
    )
    text.set_in_layout(False)


def _figure(table: Table, width: float, height: float) -> Figure:
    """An empty figure, with the remarks about the table's numbers as title."""
    figure = Figure(figsize=(width, height + 0.3 * bool(table.key.remark)), layout="constrained")
    if table.key.remark:
        figure.suptitle(table.key.remark, fontsize=9)
    return figure


def pareto(table: Table) -> Figure:
    """Last against a client's bytes per round; the line is the Pareto frontier."""
    shown = points(table)
    figure = _figure(table, 8.6, 4.2 + 0.1 * len(shown))
    axis = figure.subplots()
    for point in shown:
        group = point.line.group
        axis.errorbar(
            point.x,
            point.y,
            yerr=point.deviation or None,
            fmt=MARKERS[group],
            color=COLOURS[group],
            markersize=6,
            elinewidth=1,
            capsize=2,
        )
    xs = [p.x for p in shown]
    wide = min(xs) > 0 and max(xs) > LOG_FROM * min(xs)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axis.set_xlim(*((min(xs) / 1.6, max(xs) * 1.9) if wide else _padded(min(xs), max(xs))))
    corners = _corners(frontier(shown), axis.get_xlim()[1])
    axis.plot(*zip(*corners, strict=True), color=COLOURS[""], alpha=0.45, linewidth=1.2, zorder=0) if corners else None
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axis.set(xlabel="MB up and down, one client in one round" + (" (log scale)" if wide else ""), ylabel="Last")
    _references(axis, table)
    groups = [g for g in MEANING if any(p.line.group == g for p in shown)]
    if len(groups) > 1:
        signs = [Line2D([], [], marker=MARKERS[g], linestyle="", color=COLOURS[g]) for g in groups]
        figure.legend(signs, [MEANING[g] for g in groups], loc="outside upper right", ncols=len(groups))
    _label(axis, shown, corners)
    return figure


def _padded(low: float, high: float) -> tuple[float, float]:
    """Axis limits with room for labels; a tenth of the value if all are equal."""
    room = max(0.25 * (high - low), 0.1 * high, 1e-9)
    return max(0.0, low - room), high + room


def _beneath(text: str) -> str:
    """The label of one of two axes side by side, in lines that end where its axis does."""
    return textwrap.fill(text, 34, break_on_hyphens=False)


def lasts(table: Table) -> Figure:
    """Last of every row for each seed, and the difference from the baseline with its interval."""
    lines = table.lines
    compared = any(line.difference for line in lines)
    figure = _figure(table, 10 if compared else 6, 1.1 + 0.32 * len(lines))
    axes = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
    for y, line in enumerate(lines):
        colour, last, difference = COLOURS[line.group], line.figures["Last"], line.difference
        if last is not None:
            axes[0].scatter(last.values, [y + 0.28] * len(last.values), s=9, color=colour, alpha=0.7, linewidths=0)
            axes[0].errorbar(
                last.mean,
                y,
                xerr=last.deviation,
                fmt=MARKERS[line.group],
                color=colour,
                markersize=5,
                elinewidth=1,
                capsize=2,
            )
        if difference is not None:
            reach = [
                [max(0.0, difference.estimate - difference.low)],
                [max(0.0, difference.high - difference.estimate)],
            ]
            axes[1].errorbar(
                difference.estimate,
                y,
                xerr=reach,
                fmt=MARKERS[line.group],
                color=colour,
                markersize=5,
                elinewidth=1,
                capsize=2,
            )
    for y in range(1, len(lines)):
        if lines[y].group != lines[y - 1].group:
            for axis in axes:
                axis.axhline(y - 0.5, linewidth=0.5, linestyle=":", color="#8c8c8c")
    axes[0].set_yticks(range(len(lines)), [marked(line) for line in lines])
    axes[0].set(xlabel=_beneath("Last: mean ± standard deviation, below it the seeds"), ylim=(len(lines) - 0.5, -0.5))
    if compared:
        axes[1].axvline(0, linewidth=0.8, color="#8c8c8c")
        others = {line.against for line in lines if line.difference}
        baseline = others.pop() if len(others) == 1 else "the row named below the table"
        axes[1].set(xlabel=_beneath(f"difference to {baseline}, 95 % interval"))
        axes[1].tick_params(axis="y", length=0)
    return figure


def clocked(table: Table) -> list[Line]:
    """Rows whose runs had a simulated clock."""
    return [line for line in table.lines if all(map(curve, line.runs.values()))]


def hours(table: Table) -> Figure:
    """Mean score against simulated hours after every evaluated stage, both as means over seeds."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    for line in clocked(table):
        points = np.array([curve(run) for run in line.runs.values()]).mean(axis=0)
        axis.plot(points[:, 0], points[:, 1], marker="o", label=marked(line))
    labelled(axis, table.key.title)
    return figure
