"""The bar that says how far it is where many files are looked at."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_FROM = 200  # files


def counting(files: int) -> Progress:
    """A bar with count and remaining time on the terminal; hidden for few files and where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=files < SHOWN_FROM or not sys.stderr.isatty(),
    )
