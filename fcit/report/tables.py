"""Tables: for the terminal, as CSV and for LaTeX."""

from __future__ import annotations

import csv
import io
import re

from rich.table import Table

from fcit.evaluation.matrix import AccuracyMatrix
from fcit.results import Run

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


def summary_table(runs: list[Run]) -> Table:
    """Runs side by side: the figures of merit and what they cost."""
    table = Table(title="Comparison", title_justify="left")
    names, *rows = summary(runs)
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "method") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def summary(runs: list[Run]) -> list[list[str]]:
    """Head and one row a run: figures of merit, subspaces, traffic in MB, minutes."""
    rows = [["run", "method", *FIGURES, "subspaces", "MB sent", "MB back", "minutes"]]
    for run in runs:
        results = run.results
        traffic, seconds = results["traffic"], results["seconds"]
        rows.append([
            run.name, run.method, *(cell(results[f]) for f in FIGURES), str(results["subspaces"]),
            f"{traffic['down'] / 1e6:.1f}", f"{traffic['up'] / 1e6:.1f}", f"{sum(seconds.values()) / 60:.1f}",
        ])  # fmt: skip
    return rows


def matrix_rows(matrix: AccuracyMatrix) -> list[list[str]]:
    """Head and one row a stage."""
    rows = [["stage", *matrix.datasets, "mean"]]
    for number, row in enumerate(matrix.scores, start=1):
        if row:
            rows.append([str(number), *(cell(row.get(n)) for n in matrix.datasets), cell(sum(row.values()) / len(row))])
    return rows


def csv_text(rows: list[list[str]]) -> str:
    """Comma-separated values; a dash becomes an empty field."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["" if c == "-" else c for c in row] for row in rows])
    return file.getvalue()


_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)  # fmt: skip


_FIGURE = re.compile(r"-|[-+]?\d[\d.,]*( ± [\d.]+| [-+ \d.]+)?( \[.*\])?")


def latex(rows: list[list[str]], caption: str) -> str:
    """A table for the LaTeX package booktabs; columns of figures are right-aligned."""
    head, *body = rows
    texts = [not any(_FIGURE.fullmatch(c) for c in col) for col in zip(*body, strict=True)]
    columns = "".join("l" if text else "r" for text in texts) or "l" * len(head)
    lines = [" & ".join(c.translate(_LATEX) for c in row) + r" \\" for row in rows]
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{caption.translate(_LATEX)}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
        r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
