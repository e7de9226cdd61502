"""The bench page: one self-contained HTML file in the style of a run's report, and its figures as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from fcit.bench import figures, tables
from fcit.bench.leaderboard import Leaderboard, Line, Table
from fcit.bench.overrides import slug
from fcit.io.files import write_text
from fcit.report.figures import draw, save, svg


def _behind(board: Leaderboard, table: Table) -> str:
    """End of the names of a table's figures: that in which it differs from the others, if there are several."""
    others = list(zip(*([*other.key.parts, other.key.test_data] for other in board.tables), strict=True))
    parts = zip([*table.key.parts, table.key.test_data], others, strict=True)
    differing = [part for part, column in parts if len(set(column)) > 1]
    return f"-{slug(' '.join(differing))}" if differing else ""


def write_figures(board: Leaderboard) -> list[Path]:
    """Write ``pareto``, ``hours`` and ``last`` as SVG and PDF, named after their table if there are several.

    Returns:
        The SVG files.
    """
    written = []
    for table in board.tables:
        behind = _behind(board, table)
        drawn = {"pareto": figures.pareto} if figures.points(table) else {}
        drawn |= {"hours": figures.hours} if figures.clocked(table) else {}
        for name, maker in {**drawn, "last": figures.lasts}.items():
            picture, document = (board.folder / f"{name}{behind}.{ending}" for ending in ("svg", "pdf"))
            save(draw(maker, table), picture, document)
            written.append(picture)
    return written


def _links(board: Leaderboard, line: Line) -> list[tuple[int, str]]:
    """The report of every seed, relative to the page; empty for a run that was taken over without one."""
    reports = {seed: run.path / "report.html" for seed, run in line.runs.items()}
    return [(seed, os.path.relpath(file, board.folder) if file.is_file() else "") for seed, file in reports.items()]


def _one(board: Leaderboard, table: Table) -> dict[str, Any]:
    title = table.key.title
    blocks = [
        (
            name,
            [
                (line, tables.accuracy_cells(table, line), tables.cost_cells(table, line), _links(board, line))
                for line in lines
            ],
        )
        for name, lines in tables.blocks(table)
    ]
    some = figures.points(table)
    return {
        "slug": slug(title),
        "title": title,
        "accuracy": tables.accuracy_head(table),
        "blocks": blocks,
        "constant": tables.constant_cells(table),
        "notes": tables.notes(table),
        "cost": tables.cost_head(table) if any(line.cost["up"] for line in table.lines) else [],
        "pareto": Markup(svg(figures.pareto, table, title=f"Accuracy against bytes, {title}")) if some else None,
        "hours": Markup(svg(figures.hours, table, title=f"Accuracy against simulated hours, {title}"))
        if figures.clocked(table)
        else None,
        "lasts": Markup(svg(figures.lasts, table, title=f"Last of every row, {title}")),
    }


def render(board: Leaderboard) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("fcit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("bench.html").render(
        title=board.name, tables=[_one(board, table) for table in board.tables]
    )


def write_page(board: Leaderboard) -> None:
    """Write ``leaderboard.html``."""
    write_text(board.folder / "leaderboard.html", render(board))
