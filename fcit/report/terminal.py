"""What the terminal shows of runs: the same at the end of a run, of a deployed one, and for ``fcit report``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fcit.report import notes, scope, tables
from fcit.report.scope import accepted, groups, label, titled
from fcit.runs.reader import Run

#: Columns of text; all others are figures.
_TEXTS = ("run", "method", "dataset", "rule", "other rule")


def _print(console: Console, rows: list[list[str]], title: str) -> None:
    """A table under its title, which is kept on one line however narrow the table is."""
    head, *body = rows
    table = Table()
    for name in head:
        bold = "bold" if name == "mean" else None
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold", style=bold)
    for row in body:
        table.add_row(*row)
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def show(console: Console, runs: list[Run]) -> None:
    """Print matrix and rules of every run, and finished ones side by side where their numbers may be.

    Raises:
        RunError: a run has not evaluated any stage yet.
    """
    for run in runs:
        said = label(run)
        _print(console, tables.matrix_rows(run), titled(f"Accuracy matrix of {run.name}", said))
        rules = tables.rules(run)
        if len(rules) > 1:
            _print(console, rules, titled(f"Scores of {run.name} by other rules, last stage", said))
        _say(console, accepted(run))
        _say(console, [f"{run.name}: {sentence}" for sentence in notes.notes(run)])
    finished = [run for run in runs if run.finished]
    for said, members in groups(finished):
        _print(console, tables.summary(members), titled("Comparison", said))
    _say(console, scope.notes(finished))


def _say(console: Console, sentences: list[str]) -> None:
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def ending(console: Console, run: Run) -> None:
    """Print what a finished run found, what was lost on the way, and where the rest is."""
    console.print()
    show(console, [run])
    lost = run.results["traffic"]["rejected"]
    if lost:
        console.print(f"{lost} client updates were rejected or failed; why is in the report and {run.folder.events}")
    console.print(f"run folder: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"report:     {run.path / 'report.html'}", highlight=False, soft_wrap=True)
