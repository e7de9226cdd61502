"""Where a command prints: a page as wide as the terminal, or of fixed width where a file or a pipe reads it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PAGE = 120  # characters of a line that no terminal bounds
SHOWN_FROM = 200  # files of which a progress bar is shown
EVERY = 10.0  # seconds between two lines about something that takes long


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


class Ticker:
    """Lines about something that takes long, on standard error where it is a terminal; nothing where it is short.

    Lines and not a bar, for work within a run: a run's own bar is on the same terminal and passes lines on above it.

    Args:
        what: what is counted.
        clock: seconds.
    """

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._begin = self._last = clock()

    def reached(self, count: int) -> None:
        """Say how far it is and how fast it goes, at most once in :data:`EVERY` seconds."""
        now = self._clock()
        if now - self._last >= EVERY and sys.stderr.isatty():
            self._last = now
            rate = count / (now - self._begin)
            left = (self._total - count) / rate
            line = f"{count:,} of {self._total:,} {self._what}, {rate:,.0f} a second, {left:,.0f} s left"
            print(line, file=sys.stderr, flush=True)
