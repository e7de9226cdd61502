"""What travels: sums of the run, and of single nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Tally:
    """Bytes of messages by client since they were last taken.

    Args:
        seats: the clients of the nodes, as they are now.
    """

    def __init__(self, seats: Callable[[], Mapping[int, int]]) -> None:
        self._seats = seats
        self._nodes: dict[int, list[int]] = {}

    def add(self, traffic: dict[str, int], node: int, down: int = 0, up: int = 0) -> None:
        """Count a message to or from a node, also in the run's counters ``down`` and ``up``."""
        sums = self._nodes.setdefault(node, [0, 0])
        for place, (way, size) in enumerate((("down", down), ("up", up))):
            traffic[way] += size
            sums[place] += size

    def take(self) -> dict[int, tuple[int, int]]:
        """Bytes down and up by client, of clients that have a node; afterwards nothing is counted."""
        counted, self._nodes = self._nodes, {}
        clients = self._seats()
        return {clients[node]: (down, up) for node, (down, up) in counted.items() if node in clients}
