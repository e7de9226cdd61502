"""Where a command prints: a page as wide as the terminal, or of fixed width where a file or a pipe reads it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PAGE = 120  # characters of a line that no terminal bounds
SHOWN_FROM = 200  # files of which a progress bar is shown


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
