"""What the groups of a round have contributed, where secure aggregation lets the server know no more than sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fcit.federation.messages import ClientUpdate
from fcit.methods.base import Pair, Update


class Sums:
    """The sums of one round, in memory; stands where :class:`server.spill.Spill` stands with single updates.

    Nothing is kept for a process that goes on after a crash: its round is begun anew, with new keys.
    """

    def __init__(self) -> None:
        self._heads: dict[Pair, ClientUpdate] = {}
        self._updates: list[Update] = []
        #: Clients in the sums, those of them whose update needed no clipping, and those some of whose numbers were cut.
        self.clients = self.unclipped = self.cut = 0

    def add(self, update: Update, heads: dict[Pair, ClientUpdate], unclipped: int, cut: int) -> None:
        """Count a group.

        Args:
            update: its weighted mean under the number of its first client, with the sum of its weights.
            heads: what is known of its members.
        """
        self._updates.append(update)
        self._heads |= heads
        self.clients += len(heads)
        self.unclipped += unclipped
        self.cut += cut

    def head(self, key: Pair) -> ClientUpdate | None:
        """What is known of a client whose update is in a sum: records and loss are means of its group."""
        return self._heads.get(key)

    @property
    def flags(self) -> dict[str, Any]:
        """Entries of the ``round`` event: members of the sums by subspace, and clients some of whose numbers were
        cut."""
        members: dict[str, int] = {}
        for head in self._heads.values():
            members[head.subspace] = members.get(head.subspace, 0) + 1
        return {"summed": members} | ({"cut": self.cut} if self.cut else {})

    def __iter__(self) -> Iterator[Update]:
        """The groups by ascending first client, independent of the order in which they were summed."""
        yield from sorted(self._updates, key=lambda update: update.client)

    def clear(self) -> None:
        """Forget the round."""
        self._heads.clear()
        self._updates.clear()
        self.clients = self.unclipped = self.cut = 0
