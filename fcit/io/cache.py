"""Caches: the folder of what can be made again, and values in memory, bounded by their size."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Folder of rendered data sets, partitions, records, tokens, features and verdicts.

    The environment variable ``FCIT_CACHE``, or ``~/.cache/fcit``.
    """
    return Path(os.environ.get("FCIT_CACHE") or Path.home() / ".cache" / "fcit")


def used(file: Path) -> None:
    """Note that a file of a cache was of use: :func:`trim` removes it late."""
    with contextlib.suppress(OSError):  # removed meanwhile, or not ours to touch
        os.utime(file)


def trim(folder: Path, most: int) -> int:
    """Remove the files below a cache's folder that were of use longest ago, until they hold at most ``most`` bytes.

    Who has a removed file open or mapped can go on reading it.

    Returns:
        How many files were removed.
    """
    files = []
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process removes files, too
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                files.append((status.st_mtime_ns, status.st_size, file))
    excess, removed = sum(size for _, size, _ in files) - most, 0
    for _, size, file in sorted(files):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            file.unlink()
            removed += 1
        excess -= size
    return removed


class Bounded:
    """Keeps what was used last; all of it together is at most ``most`` large, or it is one thing.

    Args:
        size: how large a value is, in the unit of ``most``.
    """

    def __init__(self, most: int, size: Callable[[Any], int]) -> None:
        self.most, self.size = most, size
        self.held = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value kept under a key, made if it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = make()
        size = int(self.size(value))
        self._values[key] = value, size
        self.held += size
        while self.held > self.most and len(self._values) > 1:
            self.held -= self._values.popitem(last=False)[1][1]
        return value
