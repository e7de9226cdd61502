"""Where a command prints: as wide as the terminal, or a page of fixed width where a file or a pipe reads it."""

from __future__ import annotations

import sys

from rich.console import Console

PAGE = 120  # characters of a line that no terminal bounds


def console(page: int = PAGE) -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else page)


def notes() -> Console:
    """Standard error: bars and remarks that are no result; rich animates them on a terminal only."""
    return Console(stderr=True)
