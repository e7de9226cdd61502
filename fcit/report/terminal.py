"""Runs on the terminal: the same at the end of a run, of a deployed run, and for ``fcit report``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fcit.io.printable import printable
from fcit.report import notes, scope, tables
from fcit.report.scope import accepted, groups, label, titled
from fcit.runs.reader import Run

#: Columns of text; all others are numbers.
_TEXTS = ("run", "method", "dataset", "form", "rule", "other rule", "figure")


def _print(console: Console, rows: list[list[str]], title: str) -> None:
    """A table with its title, which stays on one line even if the table is narrower."""
    head, *body = rows
    table = Table()
    for name in head:
        bold = "bold" if name == "mean" else None
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold", style=bold)
    for row in body:
        table.add_row(*map(printable, row))
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def show(console: Console, runs: list[Run]) -> None:
    """Print matrix and rules of every run, and comparable finished runs side by side.

    Raises:
        RunError: a run has not evaluated any stage yet.
    """
    for run in runs:
        remark = label(run)
        _print(console, tables.matrix_rows(run), titled(f"Accuracy matrix of {run.name}", remark))
        untrained = tables.untrained_rows(run)
        if len(untrained) > 1:
            _print(console, untrained, titled(f"Scores of {run.name} on what was not trained", remark))
        held_out = tables.held_out_rules(run)
        if len(held_out) > 1:
            _print(console, held_out, titled(f"Further figures of what {run.name} held out", remark))
        participants = tables.participant_rows(run)
        if len(participants) > 1:
            _print(console, participants, titled(f"Scores of {run.name} by {participants[0][0]}, worst first", remark))
        own = tables.personal_rows(run)
        if len(own) > 1:
            _print(console, own, titled(f"Scores of clients of {run.name} on their own records", remark))
        forms = tables.forms(run)
        if len(forms) > 1:
            _print(console, forms, titled(f"Form of the answers of {run.name}, last stage", remark))
        rules = tables.rules(run)
        if len(rules) > 1:
            _print(console, rules, titled(f"Scores of {run.name} by other rules, last stage", remark))
        _say(console, accepted(run))
        _say(console, [f"{run.name}: {sentence}" for sentence in notes.notes(run)])
    finished = [run for run in runs if run.finished]
    for remark, members in groups(finished):
        _print(console, tables.summary(members, brief=True), titled("Comparison", remark))
        untrained = tables.summary_untrained(members)
        if len(untrained) > 1:
            _print(console, untrained, titled("Comparison on what was not trained", remark))
    _say(console, scope.notes(finished))


def _say(console: Console, sentences: list[str]) -> None:
    for sentence in sentences:
        console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)


def ending(console: Console, run: Run) -> None:
    """Print the results of a finished run, its faults, and where to find the rest."""
    console.print()
    show(console, [run])
    lost = run.results["traffic"]["rejected"]
    if lost:
        console.print(f"{lost} client updates were rejected or failed; why is in the report and {run.folder.events}")
    console.print(f"run folder: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"report:     {run.path / 'report.html'}", highlight=False, soft_wrap=True)
