"""Orders that were lost because their node was restarted while it had them at hand."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from server.inbox import Inbox

Activations = Mapping[int, str]  #: by node, since when it has been connected, as the SuperLink says


class _Sent(NamedTuple):
    """An order: its node, and since when that had been connected; empty if that is not known."""

    node: int
    activated: str


class Restarts:
    """Tells lost orders from those that the SuperLink still keeps and those whose reply is there already.

    The SuperLink hands an order out once, and a SuperNode takes them one by one, oldest first: at a restart at most the
    oldest that its node owes is lost, and only if it was not answered before. Flower says so itself only of a node that
    is offline when it is asked for the reply; one that is back by then would be waited for until the deadline.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._sent: dict[str, _Sent] = {}
        self._seen: dict[int, tuple[str, float]] = {}  # by node, its newest activation, and when it was seen first

    def sent(self, order: str, node: int, before: Activations, after: Activations) -> None:
        """Note what was known of an order's node before and after it was sent; a restart in between is no restart."""
        same = before.get(node) == after.get(node)
        self._sent[order] = _Sent(node, after.get(node, "") if same else "")

    def forget(self, orders: Collection[str]) -> None:
        """These are not waited for any more."""
        for order in orders:
            self._sent.pop(order, None)

    def lost(self, orders: Collection[str], now: Activations) -> list[str]:
        """Those of the orders whose replies will not come.

        A reply may have been on its way when its node was restarted: it is looked for once more from then on.
        """
        moment = time.monotonic()
        lost = []
        for order in orders:
            node, before = self._sent.get(order, _Sent(0, ""))
            current = now.get(node, "")
            if "" in (before, current) or before == current:
                continue
            if self._seen.get(node, ("", 0.0))[0] != current:
                self._seen[node] = current, moment
            if self._inbox.is_missing(node, order, self._seen[node][1]):
                lost.append(order)
                self._go_on_from(node, current)
        return lost

    def _go_on_from(self, node: int, activated: str) -> None:
        """The node's other orders were not at hand: the new process is given them."""
        for order, (its_node, before) in self._sent.items():
            if its_node == node and before:
                self._sent[order] = _Sent(node, activated)
