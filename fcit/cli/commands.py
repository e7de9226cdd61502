"""What the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from fcit.errors import EXIT_FAILED, EXIT_OK

#: Adds a command to the parser: its name, the function that carries it out, one sentence, examples; further text.
Add = Callable[..., argparse.ArgumentParser]


def print_checks(checks: Iterable[tuple[str, bool, str]]) -> int:
    """Print checks as they are made (what is checked, whether it is good, detail); returns the exit code."""
    good = True
    for what, fine, detail in checks:
        good &= fine
        print(f"{'ok  ' if fine else 'FAIL'} {what}: {detail}", flush=True)
    return EXIT_OK if good else EXIT_FAILED
