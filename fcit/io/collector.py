"""Python's collector of reference cycles while a process gets ready.

Importing torch, transformers and peft makes a million objects that all stay. The collector is started by the number of
new objects and looks at every object there is, again and again: a sixth of the time until the first order, and later
each full collection of a run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def paused() -> Iterator[None]:
    """No collection while objects are made that come to stay; blocks may be nested."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def settle() -> None:
    """Leave the objects that exist now out of all later collections of this process; only the first call does.

    For a process that does one thing, once everything is imported: reference counts still free these objects, but
    cycles among them stay. (A second call would keep models that have been replaced since.)
    """
    gc.freeze()
