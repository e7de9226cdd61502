"""The figures of a report, drawn with matplotlib; each function returns a figure to be saved or embedded.

On the page, text and lines have the colour of the surrounding text, so that one figure serves a light
and a dark theme; saved files are black on white.
"""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fcit.evaluation.matrix import Loss
from fcit.report import heat
from fcit.report.scope import groups, label
from fcit.runs.reader import Run

_INK = "#010203"  # replaced by the page's own text colour


def _style(ink: str) -> Any:
    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(keys, ink),
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "fcit",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=[_color(i) for i in range(16)]),
    }


def _color(index: int) -> str:
    """A colour that is readable on white and on dark grey; sixteen before they repeat."""
    return to_hex(matplotlib.colormaps["tab20"]((2 * index + (index // 10)) % 20))


def _panels(count: int, width: float = 5.2, height: float = 3.2, columns: int = 2) -> tuple[Figure, list[Any]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _title(run: Run, behind: str = "") -> str:
    """Run and method, and the remark about its numbers on lines of its own that no picture cuts off."""
    return "\n".join([f"{run.name} ({run.method}){behind}", *textwrap.wrap(label(run), 48)])


def matrices(runs: list[Run]) -> Figure:
    """Accuracy matrices side by side, each cell with its score; empty where not evaluated.

    Scores of data sets that were not trained yet are hatched and in italics, below a line the stages; those of held-out
    data sets stand right of a line.
    """
    widest = max(len(heat.columns(run.matrix)) for run in runs)
    rows = max(len(heat.rows(run.matrix)) for run in runs)
    figure = Figure(figsize=(1.1 + (0.72 * widest + 1.0) * len(runs), 2.0 + 0.5 * rows), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)
    image: Any = None
    for axis, run in zip(axes[0], runs, strict=True):
        matrix, shown = run.matrix, heat.rows(run.matrix)
        grid = np.array([[np.nan if c.value is None else c.value for c in row.cells] for row in shown], dtype=float)
        image = axis.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            if np.isnan(value):
                continue
            ink, unseen = "white" if value < 60 else "black", shown[y].cells[x].kind == "unseen"
            style = "italic" if unseen else "normal"
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, style=style)
            if unseen:
                axis.add_patch(_hatched(x, y, ink))
        names = heat.columns(matrix)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_yticks(range(len(shown)), ["untouched" if row.stage == heat.UNTOUCHED else row.stage for row in shown])
        axis.set_ylabel("after stage")
        if matrix.held_out_names:
            axis.axvline(len(matrix.datasets) - 0.5, color="white", linewidth=4)
        last = "-" if matrix.last is None else f"{matrix.last:.1f}"
        axis.set_title(_title(run, f": Last {last}"))
    figure.colorbar(image, ax=axes[0].tolist(), label="score (0-100)", shrink=0.9)
    return figure


def _hatched(x: int, y: int, ink: str) -> Rectangle:
    """Thin strokes over a cell, of the colour of its number."""
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor=to_rgba(ink, 0.22), linewidth=0)


def forgetting(runs: list[Run]) -> Figure:
    """Score of every data set over the stages, one panel per run; dotted before it is trained, if it was asked."""
    figure, axes = _panels(len(runs))
    for axis, run in zip(axes, runs, strict=False):
        for dataset in run.matrix.datasets:
            points = [(t, row[dataset]) for t, row in enumerate(run.matrix.scores, start=1) if dataset in row]
            lines = axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=dataset) if points else []
            before = [(t, row[dataset]) for t, row in sorted(run.matrix.unseen.items()) if dataset in row]
            for line in lines if before else []:
                axis.plot(*zip(*before, points[0], strict=True), linestyle=":", color=line.get_color())
        axis.set(title=_title(run), xlabel="after stage", ylabel="score", ylim=(-2, 102))
        axis.set_xticks(range(0 if run.matrix.unseen else 1, len(run.matrix.scores) + 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def split(run: Run) -> dict[str, Loss]:
    """The losses of a run that are known in both parts, by data set."""
    return {name: loss for name, loss in run.matrix.losses.items() if loss.content is not None}


def forms(runs: list[Run]) -> Figure:
    """What every data set lost, parted into content and form, one panel per run; a gain goes to the left."""
    figure, axes = _panels(len(runs), height=1.3 + 0.26 * max(len(split(run)) for run in runs))
    for axis, run in zip(axes, runs, strict=False):
        losses = split(run)
        parts = {
            "content": np.array([loss.content for loss in losses.values()], dtype=float),
            "form": np.array([loss.form for loss in losses.values()], dtype=float),
        }
        positive, negative = np.zeros(len(losses)), np.zeros(len(losses))
        for name, values in parts.items():
            axis.barh(list(losses), values, left=np.where(values >= 0, positive, negative), height=0.6, label=name)
            positive, negative = positive + np.maximum(values, 0), negative + np.minimum(values, 0)
        axis.axvline(0, linewidth=0.8, color="#888888")
        axis.invert_yaxis()
        axis.set(title=_title(run), xlabel="points lost from the best score to the last")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def means(runs: list[Run]) -> Figure:
    """Mean over the data sets seen so far; comparable runs share a panel."""
    parts = groups(runs)
    figure, axes = _panels(len(parts), width=6.4)
    for axis, (title, members) in zip(axes, parts, strict=False):
        for run in members:
            points = [(t, sum(row.values()) / len(row)) for t, row in enumerate(run.matrix.scores, start=1) if row]
            axis.plot(*zip(*points, strict=True), marker="o", label=f"{run.name} ({run.method})")
        axis.set(title=title, xlabel="after stage", ylabel="mean score of datasets seen", ylim=(-2, 102))
        axis.set_xticks(range(1, 1 + max(len(run.matrix.scores) for run in members)))
        axis.legend()
    return figure


def clients(run: Run) -> Figure:
    """Participants over rounds: a dot per client and round, area by records, colour by subspace."""
    figure, (axis,) = _panels(1, width=10, height=3.6)
    rounds = run.of("round")
    names = sorted({name for event in rounds for name in event["subspaces"]}, key=lambda n: (len(n), n))
    for x, event in enumerate(rounds, start=1):
        # A client that was sampled and did not take part has brought no records.
        counts = event.get("examples") or [50] * len(event["clients"])
        took_part = [n for n, count in enumerate(counts) if count]
        members, sizes = [event["clients"][n] for n in took_part], [counts[n] for n in took_part]
        colors = [_color(names.index(event["subspaces"][n])) for n in took_part]
        area = [6 + 90 * size / max(1, max(max(e.get("examples") or [1]) for e in rounds)) for size in sizes]
        axis.scatter([x] * len(sizes), members, s=area, c=colors, alpha=0.8, linewidths=0)
    for start in [x for x, event in enumerate(rounds, start=1) if event["round"] == 0][1:]:
        axis.axvline(start - 0.5, linewidth=0.5, linestyle=":", color="#888888")
    axis.set(xlabel="round (dotted: a new stage)", ylabel="client")
    dots = [Line2D([], [], marker="o", linestyle="", color=_color(i)) for i in range(len(names))]
    figure.legend(dots, [f"subspace {n}" for n in names], loc="outside lower center", ncols=min(8, max(1, len(names))))
    return figure


def course(run: Run) -> Figure:
    """Mean training loss and bytes of every round; of a centralised run the loss of every stage (of every round, where
    its method adds some) alone."""
    central = run.config.centralised
    figure, (left, *others) = _panels(1 if central else 2, height=2.4)
    rounds = run.of("round")
    # A round without updates, which only secret sampling knows, has no loss; with record_dp none is sent.
    sent = {x: [loss for loss in e["loss"].values() if loss is not None] for x, e in enumerate(rounds, start=1)}
    losses = {x: sum(each) / len(each) for x, each in sent.items() if each}
    left.plot(list(losses), list(losses.values()))
    staged = central and not any(event.get("extra") for event in rounds)
    each, said = "stage" if staged else "round", " (not sent)" if run.config.privacy.records else ""
    left.set(title=f"training loss{said}", xlabel=each, ylim=(0, 1.1 * (max(losses.values(), default=0) or 1)))
    for right in others:
        _traffic(right, rounds)
    return figure


def _traffic(right: Axes, rounds: list[dict[str, Any]]) -> None:
    """Bytes of every round each way."""
    for key, text in (("down", "to clients"), ("up", "from clients")):
        right.plot(range(1, len(rounds) + 1), [e[key] / 1e6 for e in rounds], label=text)
    most = max((max(e["up"], e["down"]) / 1e6 for e in rounds), default=1)
    right.set(title="MB on the wire", xlabel="round", ylim=(0, 1.2 * (most or 1)))
    right.legend()


def seconds(runs: list[Run]) -> Figure:
    """Wall time by activity, one bar per run."""
    figure, (axis,) = _panels(1, width=8, height=1.1 + 0.45 * len(runs))
    parts = list(dict.fromkeys(part for run in runs for part in run.results["seconds"]))
    base = np.zeros(len(runs))
    for part in parts:
        values = np.array([run.results["seconds"].get(part, 0.0) for run in runs])
        axis.barh([run.name for run in runs], values, left=base, label=part, height=0.6)
        base += values
    axis.invert_yaxis()
    axis.set(xlabel="seconds")
    figure.legend(loc="outside lower center", ncols=len(parts))
    return figure


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by each file's ending; the same bytes for the same figure.

    SVG and PDF are laid out alike, once: it takes as long as drawing does.
    """
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if all(path.suffix in dates for path in paths):
        _lay_out(figure)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "fcit"}):
            figure.savefig(path, dpi=130, facecolor="white", metadata=dates.get(path.suffix))


def draw(maker: Any, *arguments: Any, ink: str = "black") -> Figure:
    """Draw a figure in a given colour of text and lines."""
    with matplotlib.rc_context(_style(ink)):
        return maker(*arguments)


def _lay_out(figure: Figure) -> None:
    """Give everything in a figure its place, for a drawing as SVG or PDF.

    ``savefig`` would draw the whole figure once without a file for this, and again into the file.
    """
    FigureCanvasSVG(figure)  # whose font metrics count
    figure.dpi = FigureCanvasSVG.fixed_dpi
    engine = figure.get_layout_engine()
    assert engine is not None, "every figure here is made with layout='constrained'"
    engine.execute(figure)
    figure.set_layout_engine(None)


def svg(maker: Any, *arguments: Any, title: str) -> str:
    """A figure as an SVG element whose text and lines take the page's colour."""
    with matplotlib.rc_context(_style(_INK)):
        figure = maker(*arguments)
        _lay_out(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # the page itself names its maker
    # Ids of several figures on one page must differ.
    number = re.sub(r"\W", "", title)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{number}-", text)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
