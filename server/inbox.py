"""Replies fetched from a grid one at a time, off the caller's thread.

Flower puts a reply together while it is pulled: it waits there for parts that are not uploaded yet, for more than an
hour, and raises what is wrong with any of them (flwr 1.41 and 1.42). Here neither delays or ends anything else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

_NAP, _LONGEST_NAP = 0.05, 1.0  # seconds between two looks for a node's replies
_SPACING = 0.1  # seconds between two looks at the grid, on average, while nothing comes from any node


class Arrival(NamedTuple):
    """What came for an order: usually one reply; none if it could not be read, and why."""

    order: str
    replies: list[Message]
    problem: str = ""


class Inbox:
    """Fetches replies by one daemon thread per node that owes some.

    So a node that withholds a part of a reply keeps its own thread waiting, and its own later replies. There are never
    more threads than nodes that were sent orders.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._news = threading.Condition()  # guards everything below
        self._open: dict[int, list[str]] = {}  # by node, the orders whose replies are looked for, oldest first
        self._threads: dict[int, threading.Thread] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._pulling: dict[int, str] = {}  # by node, the order whose reply is being pulled
        self._overdue: set[str] = set()  # of those, the ones that are told of when they have come
        self._late: list[int] = []
        self._end: BaseException | None = None

    def expect(self, node: int, order: str) -> None:
        """Look for a node's reply to an order until it has come or is forgotten."""
        with self._news:
            self._open.setdefault(node, []).append(order)
            if node not in self._threads:
                self._threads[node] = threading.Thread(target=self._fetch, args=(node,), daemon=True)
                self._threads[node].start()

    def put(self, order: str, reply: Message) -> None:
        """Let a reply have come that was not fetched."""
        with self._news:
            self._arrivals[order] = Arrival(order, [reply])

    def take(self, orders: Collection[str], seconds: float) -> Arrival | None:
        """What has come for one of the orders, waiting for it if need be; None if nothing comes.

        Raises:
            BaseException: what Flower says of a run that is not to go on.
        """
        with self._news:
            self._news.wait_for(lambda: self._end or not self._arrivals.keys().isdisjoint(orders), seconds)
            if self._end is not None:
                raise self._end
            order = next((order for order in self._arrivals if order in orders), None)
            return None if order is None else self._arrivals.pop(order)

    def forget(self, orders: Collection[str], overdue: bool) -> None:
        """Look for the replies to these orders no longer.

        Args:
            overdue: whether the node of one that is being pulled is :meth:`late` when it has come.
        """
        with self._news:
            for node, open_ in list(self._open.items()):
                self._open[node] = [order for order in open_ if order not in orders]
            for order in orders:
                self._arrivals.pop(order, None)
            if overdue:
                self._overdue |= {order for order in self._pulling.values() if order in orders}

    def close(self) -> None:
        """Look for no replies any more."""
        with self._news:
            self._open.clear()
            self._arrivals.clear()

    def pulling(self) -> set[str]:
        """Orders whose replies are being looked for or put together at this moment."""
        with self._news:
            return set(self._pulling.values())

    def late(self) -> list[int]:
        """Nodes of which an overdue reply has come, once for each; the reply is dropped."""
        with self._news:
            nodes, self._late = self._late, []
        return nodes

    # ------------------------------------------------------------------ in the thread of a node

    def _fetch(self, node: int) -> None:
        """Look for the replies that a node owes until it owes none."""
        nap, turn = _NAP, 0
        while True:
            with self._news:
                open_ = list(self._open.get(node, ()))
                longest = max(_LONGEST_NAP, 2 * _SPACING * len(self._threads))
                if not open_:
                    self._open.pop(node, None)
                    del self._threads[node]
                    return
            # A node is given its orders in their order. One of the others is looked at, too: the oldest may be lost.
            turn += 1
            came = [self._look(node, order) for order in dict.fromkeys([open_[0], open_[turn % len(open_)]])]
            nap = _NAP if any(came) else min(1.5 * nap, longest)
            if not any(came):
                time.sleep(nap)

    def _look(self, node: int, order: str) -> bool:
        """Pull the reply to an order; whether there was one."""
        with self._news:
            if order not in self._open.get(node, ()):
                return False  # forgotten meanwhile
            self._pulling[node] = order
        replies, problem = list[Message](), ""
        try:
            replies = list(self._grid.pull_messages([order]))
        except httpx.HTTPError:
            # Of the SuperLink, not of the reply: the next look may succeed. If it failed after it had handed over the
            # list of the reply's parts, Flower says then that the message is gone, which counts as the site's error.
            pass
        except Exception as error:  # noqa: BLE001  (what Flower raises for a reply that it cannot put together)
            problem = f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001  (a run that has ended: raised where the loop waits)
            with self._news:
                self._end = error
                self._open.pop(node, None)
        came = bool(replies or problem)
        with self._news:
            del self._pulling[node]
            if came and order in self._open.get(node, ()):
                self._open[node].remove(order)
                self._arrivals[order] = Arrival(order, replies, problem)
            elif came and order in self._overdue:
                self._late.append(node)
            self._overdue.discard(order)
            self._news.notify_all()
        return came
