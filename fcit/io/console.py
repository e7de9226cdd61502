"""Where a command prints, and what: text of others must not steer the terminal it is shown on.

A page is as wide as the terminal, or of fixed width where a file or a pipe reads it.
"""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PAGE = 120  # characters of a line that no terminal bounds
SHOWN_FROM = 200  # files of which a progress bar is shown


def printable(text: str) -> str:
    """Text of any author as it may be printed or logged: no escape sequences, nothing that hides or turns text.

    Lines and tabs stay; other white space is a blank, every other character that Unicode does not print a ``?``.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "?" for c in text)


class PrintableFormatter(logging.Formatter):
    """Log lines that may be looked at on a terminal, whatever they quote."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def console(page: int = PAGE) -> Console:
    """Standard output; ``page`` characters wide where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else page)


def notes() -> Console:
    """Standard error, for progress bars and remarks that are not part of the result."""
    return Console(stderr=True)


def progress_bar(files: int) -> Progress:
    """A bar with count and remaining time on standard error; hidden for few files and where it is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=notes(),
        disable=files < SHOWN_FROM or not sys.stderr.isatty(),
    )
