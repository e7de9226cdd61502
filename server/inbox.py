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

from fcit.federation.nodes import MESSAGE_UNAVAILABLE, UNKNOWN

_NAP, _LONGEST_NAP = 0.05, 1.0  # seconds between two looks for a node's replies
_LAST = 0.5  # seconds before a deadline at which every node is looked at once more
_SPACING = 0.1  # seconds between two looks at the grid, on average, while nothing comes from any node
_AT_ONCE = 8  # replies that are in memory at a time, put together or waiting to be taken
_SLOW = 20.0  # seconds after which one that is being put together makes room: its site is still uploading it
_YOUNG = 1.0  # seconds after which one that is being put together cannot have been there whole when that began


class Arrival(NamedTuple):
    """What came for an order: usually one reply; none if there is a problem, and what it is, with an error code."""

    order: str
    replies: list[Message]
    problem: str = ""
    code: int = UNKNOWN


class _Pull(NamedTuple):
    """A reply is being looked for or put together."""

    node: int
    begun: float  # by time.monotonic()


class Inbox:
    """Fetches replies by one daemon thread per node that owes some.

    So a node that withholds a part of a reply keeps its own thread waiting, and no other node. When nobody waits for
    that reply any more, another thread fetches the node's later ones; if it is kept waiting, too, so are they. There
    are never more than two threads for a node.

    Only a few replies are fetched before the first of them is taken and dealt with. Those that somebody waits for have
    their own room, which those that nobody waits for yet cannot fill. Beyond these two rooms memory grows only with
    the sites that have been uploading a reply for 20 s: as these hold up no others, all of theirs may be in memory.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._news = threading.Condition()  # guards everything below
        self._open: dict[int, list[str]] = {}  # by node, the orders whose replies are looked for, oldest first
        self._threads: dict[int, threading.Thread] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._pulling: dict[str, _Pull] = {}  # by order
        self._left: dict[int, str] = {}  # by node, the order whose reply another thread than its own still pulls
        self._held: set[str] = set()  # orders whose replies have come and are not dealt with yet
        self._due: set[str] = set()  # open orders that are to be looked at as soon as there is room for a reply
        self._fresh: set[int] = set()  # nodes that have been given an order since they were looked at
        self._taken: str | None = None  # the one of them that was taken last
        self._wanted: set[str] = set()  # orders that somebody waits for, or did last
        self._empty: dict[str, float] = {}  # by order, when the last look began that found nothing
        self._failures: dict[str, str] = {}  # by order, how the SuperLink failed when it was asked for the reply
        #: By time.monotonic(), until when somebody waits.
        self.deadline = float("-inf")
        self._overdue: set[str] = set()  # of those, the ones that are told of when they have come
        self._late: list[int] = []
        self._end: BaseException | None = None

    def expect(self, node: int, order: str) -> None:
        """Look for a node's reply to an order until it has come or is forgotten."""
        with self._news:
            self._open.setdefault(node, []).append(order)
            self._fresh.add(node)
            self._start(node)
            self._news.notify_all()

    def _start(self, node: int) -> None:
        thread = self._threads.get(node)
        if self._open.get(node) and (thread is None or not thread.is_alive()):
            self._threads[node] = threading.Thread(target=self._fetch, args=(node,), daemon=True)
            self._threads[node].start()

    def put(self, order: str, reply: Message) -> None:
        """Let a reply have come that was not fetched."""
        with self._news:
            self._arrivals[order] = Arrival(order, [reply])

    def take(self, orders: Collection[str], seconds: float) -> Arrival | None:
        """What has come for one of the orders, waiting for it if need be; None if nothing comes.

        What was taken before counts as dealt with.

        Raises:
            BaseException: what Flower says of a run that is not to go on.
        """
        with self._news:
            self._make_room(orders)
            self._news.wait_for(lambda: self._end or not self._arrivals.keys().isdisjoint(orders), seconds)
            if self._end is not None:
                raise self._end
            order = next((order for order in self._arrivals if order in orders), None)
            if order is None:
                return None
            self._taken = order
            return self._arrivals.pop(order)

    def _make_room(self, wanted: Collection[str]) -> None:
        if self._taken is not None:
            self._held.discard(self._taken)
        self._taken, self._wanted = None, set(wanted)
        self._news.notify_all()

    def forget(self, orders: Collection[str], overdue: bool) -> None:
        """Look for the replies to these orders no longer.

        Args:
            overdue: whether the node of one that is being pulled is :meth:`late` when it has come.
        """
        with self._news:
            for node, open_ in list(self._open.items()):
                self._open[node] = [order for order in open_ if order not in orders]
                self._leave(node, set(open_) & set(orders) & self._pulling.keys())
            for order in orders:
                self._arrivals.pop(order, None)
                self._failures.pop(order, None)
                self._empty.pop(order, None)
            self._held -= set(orders)
            self._due -= set(orders)
            self._news.notify_all()
            if overdue:
                self._overdue |= self._pulling.keys() & set(orders)

    def _leave(self, node: int, pulled: set[str]) -> None:
        """Leave a reply that nobody waits for to the thread that pulls it, and the node's others to a new thread."""
        if pulled and node not in self._left:
            self._left[node] = pulled.pop()
            self._threads.pop(node, None)
            self._start(node)

    def close(self) -> None:
        """Look for no replies any more."""
        with self._news:
            self._open.clear()
            self._arrivals.clear()
            self._held.clear()
            self._due.clear()
            self._empty.clear()
            self._news.notify_all()

    def is_missing(self, node: int, order: str, since: float) -> bool:
        """Whether an order is the oldest that its node owes, and a look that began after a moment has found nothing.

        Args:
            since: by time.monotonic().
        """
        with self._news:
            oldest = next(iter(self._open.get(node, ())), None)
            found_nothing = self._empty.get(order, float("-inf")) > since
            return order == oldest and order not in self._pulling and found_nothing

    def hurry(self, orders: Collection[str]) -> None:
        """Look for all of these orders of a node as soon as there is room, if there was none for one of them."""
        with self._news:
            for open_ in self._open.values():
                if not self._due.isdisjoint(open_):
                    self._due.update(set(orders).intersection(open_))

    def in_time(self, orders: Collection[str]) -> set[str]:
        """Those of the orders whose replies may have been there by now, although they have not been taken."""
        with self._news:
            now = time.monotonic()
            old = {order: pull.node for order, pull in self._pulling.items() if now - pull.begun >= _YOUNG}
            stuck = {node for order, node in old.items() if self._left.get(node) != order}
            due = {o for node, open_ in self._open.items() if node not in stuck for o in self._due.intersection(open_)}
            return set(orders) & (self._arrivals.keys() | due | self._pulling.keys() - old.keys())

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
                if self._threads.get(node) is not threading.current_thread():
                    return  # another one does it now
                open_ = list(self._open.get(node, ()))
                if node in self._fresh:
                    self._fresh.remove(node)
                    nap = _NAP
                longest = max(_LONGEST_NAP, 2 * _SPACING * len(self._threads))
                if not open_:
                    self._open.pop(node, None)
                    del self._threads[node]
                    return
                # A node is given its orders in their order. Another one is looked at, too: the oldest may be lost.
                turn += 1
                looked = dict.fromkeys([open_[0], self._ready(node) or open_[turn % len(open_)]])
            came = [self._look(node, order) for order in looked]
            if any(came):
                nap = _NAP
                continue
            nap = min(1.5 * nap, longest) if False in came else nap
            left = self.deadline - _LAST - time.monotonic()
            pause = min(nap, left) if left > 0 else nap
            with self._news:
                if not self._due.isdisjoint(open_):
                    self._news.wait_for(lambda: node in self._fresh or self._ready(node), pause)
                    continue
            time.sleep(pause)

    def _look(self, node: int, order: str) -> bool | None:
        """Pull the reply to an order; whether there was one, None if there was no room for one."""
        with self._news:
            if order not in self._open.get(node, ()):
                return False  # forgotten meanwhile
            if self._threads.get(node) is not threading.current_thread():
                return False  # another one may be pulling it already, and the SuperLink hands a reply over once
            if not self._has_room(order in self._wanted):
                self._due.add(order)
                return None
            self._due.discard(order)
            self._pulling[order] = _Pull(node, time.monotonic())
        replies, problem, failure = list[Message](), "", ""
        try:
            replies = list(self._grid.pull_messages([order]))
        except httpx.HTTPError as error:
            failure = str(error)  # of the SuperLink, not of the reply: the next look may succeed
        except Exception as error:  # noqa: BLE001  (what Flower raises for a reply that it cannot put together)
            problem = f"its reply cannot be read: {type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001  (a run that has ended: raised where the loop waits)
            with self._news:
                self._end = error
                self._open.pop(node, None)
        with self._news:
            return self._finish(node, Arrival(order, replies, problem), failure)

    def _ready(self, node: int) -> str | None:
        """An order of a node that is due and for whose reply there is room now."""
        due = (order for order in self._open.get(node, ()) if order in self._due)
        return next((order for order in due if self._has_room(order in self._wanted)), None)

    def _has_room(self, wanted: bool) -> bool:
        """Whether another reply may be fetched, of those that somebody waits for or of the others."""
        now = time.monotonic()
        busy = self._held | {order for order, pull in self._pulling.items() if now - pull.begun < _SLOW}
        return sum((order in self._wanted) == wanted for order in busy) < _AT_ONCE

    def _finish(self, node: int, arrival: Arrival, failure: str) -> bool:
        """Keep what has come, if anything has."""
        order, replies = arrival.order, arrival.replies
        begun = self._pulling.pop(order).begun
        came = bool(replies or arrival.problem)
        before = self._failures.pop(order, None)
        self._empty.pop(order, None)
        if order in self._open.get(node, ()):
            if came:
                self._open[node].remove(order)
                self._arrivals[order] = _after(before, arrival)
                self._held.add(order)
            elif failure:
                self._failures[order] = failure
            else:
                self._empty[order] = begun
        elif came and order in self._overdue:
            self._late.append(node)
        if self._left.get(node) == order:
            del self._left[node]
        self._overdue.discard(order)
        self._news.notify_all()
        return came


def _after(failure: str | None, arrival: Arrival) -> Arrival:
    """What has come for an order, if the look for its reply before this one was a failure of the SuperLink, or None."""
    if failure is None or not any(r.has_error() and r.error.code == MESSAGE_UNAVAILABLE for r in arrival.replies):
        return arrival
    # It had handed over the list of the reply's parts, and deleted it, before it failed.
    return Arrival(arrival.order, [], f"the SuperLink has lost its reply: {failure}", MESSAGE_UNAVAILABLE)
