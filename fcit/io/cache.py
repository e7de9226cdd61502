"""A cache that is bounded by the size of what it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


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
