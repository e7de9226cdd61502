"""Waiting for an event, with a bound that only something that never comes can reach."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: Seconds; a machine that is busy with other things may need ten times what an idle one needs.
LONG = 900.0


def wait(condition: Callable[[], T], explain: Callable[[], str] = str, pause: float = 0.1) -> T:
    """The first true value of ``condition``, looked at every ``pause`` seconds.

    :raises AssertionError: if it does not come within :data:`LONG` seconds; holds what ``explain`` returns.
    """
    deadline = time.monotonic() + LONG
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {LONG} s\n{explain()}"
        time.sleep(pause)
    return value
