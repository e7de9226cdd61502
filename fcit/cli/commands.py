"""What the files of the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from fcit.errors import EXIT_FAILED, EXIT_OK

#: Adds a command to the parser: name, what carries it out, one sentence, an example.
Add = Callable[..., argparse.ArgumentParser]


def told(checks: Iterable[tuple[str, bool, str]]) -> int:
    """Print checks as they are made (what, whether it is fine, detail); returns the exit code."""
    good = True
    for what, fine, detail in checks:
        good &= fine
        print(f"{'ok  ' if fine else 'FAIL'} {what}: {detail}", flush=True)
    return EXIT_OK if good else EXIT_FAILED
