"""Large arrays on several threads: numpy, hashlib and file reads leave Python's lock to others meanwhile.

Work is divided by tensors and by stretches of them that do not depend on the machine, so results have the same bits
whatever the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")
R = TypeVar("R")

WORTH = 2**20  # numbers from which handing work over costs less than it saves
STRETCH = (
    2**21
)  # numbers of a tensor that one thread takes: half of LLaVA-1.5's adapters are one matrix of the projector
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


def by_stretches(function: Callable[[str, slice], R], flat: Mapping[str, np.ndarray]) -> dict[str, list[R]]:
    """The values of ``function(name, stretch)`` by the name of each tensor ``(size,)``, from its first stretch on.

    Stretches are of :data:`STRETCH` numbers, the last one of what is left; an empty tensor has none.
    """
    parts = [
        (name, slice(first, min(first + STRETCH, len(values))))
        for name, values in flat.items()
        for first in range(0, len(values), STRETCH)
    ]
    made: dict[str, list[R]] = {name: [] for name in flat}
    values = each(lambda part: function(*part), parts, sum(len(values) for values in flat.values()))
    for (name, _), value in zip(parts, values, strict=True):
        made[name].append(value)
    return made


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
