"""Tables for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from fcit.evaluation.matrix import AccuracyMatrix
from fcit.run_dir import RunDir, read_json

FIGURES = ("Last", "Avg", "MFT", "BWT", "forgetting")


def cell(value: float | None) -> str:
    """A score with one decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


def matrix_table(matrix: AccuracyMatrix, title: str) -> Table:
    """The accuracy matrix: one row a stage, one column a dataset."""
    table = Table(title=title, title_justify="left")
    table.add_column("stage", justify="right")
    for name in matrix.datasets:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("mean", justify="right", style="bold")
    for number, row in enumerate(matrix.scores, start=1):
        if row:
            mean = sum(row.values()) / len(row)
            table.add_row(str(number), *(cell(row.get(name)) for name in matrix.datasets), cell(mean))
    return table


def summary_table(runs: list[tuple[str, dict[str, Any]]]) -> Table:
    """Runs side by side: the figures of merit and what they cost."""
    table = Table(title="Comparison", title_justify="left")
    for name in ("run", "method", *FIGURES, "subspaces", "MB sent", "MB back", "minutes"):
        table.add_column(name, justify="left" if name in ("run", "method") else "right")
    for name, results in runs:
        traffic, seconds = results["traffic"], results["seconds"]
        table.add_row(
            name, results["method"], *(cell(results[f]) for f in FIGURES), str(results["subspaces"]),
            f"{traffic['down'] / 1e6:.1f}", f"{traffic['up'] / 1e6:.1f}", f"{sum(seconds.values()) / 60:.1f}",
        )  # fmt: skip
    return table


def load(path: Path) -> tuple[AccuracyMatrix, dict[str, Any]]:
    """Matrix and results of a finished run.

    Raises:
        ConfigError: not a run folder. RunError: the run has not finished.
    """
    run = RunDir.open(path)
    return AccuracyMatrix.from_json(read_json(run.matrix)), read_json(run.results)
