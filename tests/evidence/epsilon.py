"""Accuracy against epsilon of the bench ``mini-privacy``: ``python -m tests.evidence.epsilon [FOLDER]``.

Reads ``leaderboard.json`` in the folder that ``fcit bench configs/bench/mini-privacy.yaml --into FOLDER`` has written
(default: ``examples/benches/mini-privacy``), prints the table and draws ``epsilon.svg`` beside it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[2] / "examples" / "benches" / "mini-privacy"
LABEL = re.compile(r"(?P<method>.+) / (?P<clients>\d+) clients(?: / epsilon (?P<epsilon>[\d.]+))?")
EPSILONS = ("1", "4", "8", "infinity")
COLOURS = {"finetune": "#8c8c8c", "disco": "#3a87c8", "disco per_subspace": "#ff7f0e"}

Curves = dict[tuple[str, int], dict[str, float]]


def curves(board: dict[str, Any]) -> Curves:
    """Last by epsilon, for each method and number of clients.

    Raises:
        ValueError: a row is not of this bench.
    """
    found: Curves = {}
    for row in (row for table in board["tables"] for row in table["rows"]):
        match = LABEL.fullmatch(row["row"])
        if match is None:
            raise ValueError(f"{row['row']!r}: not a row of mini-privacy")
        curve = found.setdefault((match["method"], int(match["clients"])), {})
        curve[f"{float(match['epsilon']):g}" if match["epsilon"] else "infinity"] = row["figures"]["Last"]["mean"]
    return found


def table(found: Curves) -> str:
    """The curves as Markdown; a dash where a row is not finished."""
    lines = [["method", "clients", *(f"epsilon {epsilon}" for epsilon in EPSILONS)], ["---"] * (2 + len(EPSILONS))]
    for (method, clients), curve in sorted(found.items(), key=lambda item: (item[0][1], item[0][0] != "finetune")):
        values = [f"{curve[epsilon]:.1f}" if epsilon in curve else "-" for epsilon in EPSILONS]
        lines.append([method, str(clients), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Curves, floor: float | None) -> Figure:
    """Last against epsilon, a panel for each number of clients; dotted: the best constant answer."""
    numbers = sorted({clients for _, clients in found})
    figure = Figure(figsize=(4.2 * len(numbers), 3.2), layout="constrained")
    axes = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axis, clients in zip(axes, numbers, strict=True):
        for method, colour in COLOURS.items():
            curve = found.get((method, clients), {})
            at = [place for place, epsilon in enumerate(EPSILONS) if epsilon in curve]
            axis.plot(at, [curve[EPSILONS[place]] for place in at], marker="o", color=colour, label=method)
        if floor is not None:
            axis.axhline(floor, color="#8c8c8c", linewidth=0.8, linestyle=":")
        axis.set(title=f"{clients} clients", xlabel="epsilon of whole clients", ylim=(0, 100))
        axis.set_xticks(range(len(EPSILONS)), EPSILONS)
    axes[0].set_ylabel("Last")
    axes[-1].legend(loc="upper left", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    board = json.loads((folder / "leaderboard.json").read_text())
    found, constant = curves(board), board["tables"][0]["best_constant_answer"]
    print(table(found))
    figure = draw(found, None if constant is None else fmean(constant["scores"][-1].values()))
    with matplotlib.rc_context({"svg.hashsalt": "fcit"}):
        FigureCanvasSVG(figure).print_svg(folder / "epsilon.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
