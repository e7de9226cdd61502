"""Large arrays on several threads: numpy, hashlib and file reads leave Python's lock to others meanwhile.

Work is divided by whole tensors, never within one, so results have the same bits whatever the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORTH = 2**20  # numbers from which handing work over costs less than it saves
MOST = 4  # threads: more would wait for memory


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MOST, cores()), thread_name_prefix="tensors")


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def each(function: Callable[[T], R], items: Sequence[T], numbers: int) -> list[R]:
    """``[function(item) for item in items]``, on threads if the items hold :data:`WORTH` numbers together or more."""
    if numbers < WORTH or cores() == 1:
        return [function(item) for item in items]
    return list(_pool().map(function, items))


@contextmanager
def beside(function: Callable[[], None], numbers: int) -> Iterator[None]:
    """Run a function on a thread of its own while the body runs, or before it for less than :data:`WORTH` numbers.

    The body's end waits for it; what it raises is raised there.
    """
    if numbers < WORTH or cores() == 1:
        function()
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as thread:
        running = thread.submit(function)
        yield
        running.result()


def read_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map(function, items)`` whose next value is made on a thread while the caller works on this one.

    Two values are in memory at a time.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: Future[R] | None = None
        for item in items:
            coming = thread.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()
