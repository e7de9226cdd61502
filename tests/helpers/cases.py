"""One test over many cases that names every case that fails."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pytest

T = TypeVar("T")


def check_each(cases: Mapping[str, T] | Iterable[T], check: Callable[[T], object]) -> None:
    """Run ``check`` on every case: a value, or a named value of a mapping.

    :raises AssertionError: if a check raises; holds the name, the place and the reason of every case that failed.
    """
    named = cases.items() if isinstance(cases, Mapping) else ((repr(case)[:100], case) for case in cases)
    failures, count = [], 0
    for name, case in named:
        count += 1
        try:
            check(case)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  (whatever it is, the others are checked, too)
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{name}: {type(error).__name__} at {last.filename}:{last.lineno}: {error}")
    assert count, "no cases"
    assert not failures, f"{len(failures)} of {count} cases failed\n" + "\n".join(failures)
