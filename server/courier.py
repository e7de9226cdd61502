"""Carries orders to nodes and replies back, counting bytes."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.engines.private import NodeInfo
from fcit.federation.messages import Name
from fcit.federation.nodes import NODE_UNAVAILABLE, SERVER_NODE, UNKNOWN
from fcit.io.printable import printable
from server.inbox import Arrival, Inbox
from server.restarts import Restarts
from server.seats import Seats
from server.stop import Stop
from server.tally import Tally

T = TypeVar("T")
NOBODY = 0  # the node of a client that is not connected; Flower gives this id to no node
_CLIENT = re.compile(r"0|[1-9][0-9]*")  # how the operator names the node of a client
_NAP, _LONGEST_NAP = 0.1, 1.0  # seconds between two looks for nodes
_LISTEN = 0.2  # seconds of waiting for a reply until a request to stop is looked for
_FETCH = 0.05  # seconds between two looks, after a deadline, whether what came in time has been fetched
_FETCHED = 30.0  # seconds without a reply after which it is not waited for: longer than a slow one takes the room
_APPEAR = 60.0  # seconds in which all nodes of Flower's own simulation must have appeared
_PATIENT = 60.0  # seconds in which a SuperLink that fails may recover
_HALF_DAY = 12 * 3600.0
_GRACE = 60.0  # seconds for which an order is kept at least beyond its deadline
_LOOK = 5.0  # seconds between two looks for sites that were restarted with an order at hand


class Node(NamedTuple):
    """A connected node; one that was restarted is another."""

    id: int
    activated: str


class Courier:
    """The server's side of the wire.

    Three kinds of grids: virtual ones have every client from the start; in Flower's own simulation nodes
    have no names and are asked for their client once; in deployment client k is the node that the operator
    registered as "k", and the connected nodes are looked up again before every round.

    Args:
        clients: their number.
        traffic: counters ``up``, ``down`` (bytes as encoded), ``orders`` and ``rejected``, added to in place.
        say: called with each event, as kind and values.
        stop: looked at while waiting; by default no stop is requested.
    """

    def __init__(
        self,
        grid: Grid,
        federation: Federation,
        clients: int,
        traffic: dict[str, int],
        say: Callable[..., None] = lambda kind, **values: None,
        stop: Stop | None = None,
    ) -> None:
        self.grid, self.federation, self.traffic, self.say = grid, federation, traffic, say
        self._seats, self.tally = Seats(), Tally(lambda: self._seats.clients)
        self.stop = stop or Stop()
        self.clients = clients
        #: Whether this is a deployment, whose sites may connect and disconnect during the run.
        self.deployed = False
        self._inbox = Inbox(grid)
        self._restarts = Restarts(self._inbox)
        self._looked = time.monotonic()  # for sites that were restarted
        self._twice: set[int] = set()  # clients under whose name two nodes are connected
        self._virtual = bool(getattr(grid, "virtual", False))
        if self._virtual:
            self.seat({int(node.name): node.node_id for node in grid.get_nodes() if int(node.name) < clients})

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the traffic of the body out of the counters."""
        counters, self.traffic = self.traffic, dict.fromkeys(self.traffic, 0)
        try:
            yield
        finally:
            self.traffic = counters

    # ------------------------------------------------------------------ connecting

    def connect(self) -> None:
        """Wait for the clients, at most ``federation.timeout``: for ``min_updates`` of them in deployment.

        Raises:
            RunError: in a simulation, not all of them within a minute.
            StopRequested: asked to stop.
        """
        if self._seats.nodes:
            return
        begin = time.monotonic()
        while not (nodes := self._all_nodes()) and time.monotonic() - begin < self.federation.timeout:
            self.stop.pause(_LONGEST_NAP)
        self.deployed = not nodes or any(node.name for node in nodes)
        if not self.deployed:
            self._ask_names(begin + min(_APPEAR, self.federation.timeout))
            return
        enough = min(self.federation.min_updates, self.clients)
        while len(self.connected()) < enough and time.monotonic() - begin < self.federation.timeout:
            self.stop.pause(_LONGEST_NAP)

    def _ask_names(self, deadline: float) -> None:
        """Flower's own simulation: nodes appear shortly after the server starts and are asked for their client."""
        while len(nodes := self._all_nodes()) < self.clients and time.monotonic() < deadline:
            self.stop.pause(_NAP)
        queries = [Message(RecordDict(), dst_node_id=n.node_id, message_type="query.whoami") for n in nodes]
        self._push(queries)
        with self.uncounted():
            for reply in self.replies(queries, self.federation.timeout):
                if reply.has_content():
                    client, node = codec.decode(reply.content, Name, reply=True).client, reply.metadata.src_node_id
                    if not self._seats.add(client, node):
                        raise RunError(f"two nodes say they are client {client}")
        self.forget(queries)
        missing = [k for k in range(self.clients) if k not in self._seats.nodes]
        if missing:
            raise RunError(f"{len(missing)} of {self.clients} clients are not connected (first: client {missing[0]})")

    def connected(self) -> dict[int, Node]:
        """Deployment: the nodes that are connected now, by client.

        A client under whose name two are connected is left out: which of them it is cannot be known here.
        """
        nodes: dict[int, list[Node]] = {}
        for info in self._all_nodes():
            client = int(info.name) if _CLIENT.fullmatch(info.name) else self.clients
            if client < self.clients:
                nodes.setdefault(client, []).append(Node(info.node_id, info.last_activated_at))
        twice = {client: sorted(its) for client, its in nodes.items() if len(its) > 1}
        for client in sorted(twice.keys() - self._twice):
            ids = " and ".join(str(node.id) for node in twice[client])
            self.say(
                "refused",
                client=client,
                reason=f"nodes {ids} are registered as this client; remove one with `flwr supernode unregister`",
            )
        self._twice = set(twice)
        return {client: its[0] for client, its in nodes.items() if client not in twice}

    def _all_nodes(self) -> list[NodeInfo]:
        return list(self._patiently(self.grid.get_nodes))

    def _patiently(self, call: Callable[[], Iterable[T]]) -> Iterable[T]:
        """What a call of the grid returns, called again for a minute if the SuperLink fails (its database is locked).

        Raises:
            RunError: it goes on failing.
            StopRequested: asked to stop meanwhile.
        """
        end = time.monotonic() + _PATIENT
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                if time.monotonic() >= end:
                    raise RunError(f"the SuperLink fails ({error}); its log says why; then resume the run") from error
            self.stop.pause(_LONGEST_NAP)

    def seat(self, nodes: dict[int, int]) -> None:
        """Set the nodes that take part from now on, by client."""
        self._seats = Seats(nodes)

    @property
    def nodes(self) -> list[int]:
        """Nodes that take part, by ascending client."""
        return [node for _, node in sorted(self._seats.nodes.items())]

    def node(self, client: int) -> int:
        """Node of a client, :data:`NOBODY` if it is not connected.

        The participant of pooled references lives on the first node.
        """
        return self._seats.nodes.get(max(client, 0), NOBODY)

    def client(self, node: int) -> int | None:
        """The client at a node."""
        return self._seats.clients.get(node)

    # ------------------------------------------------------------------ orders and replies

    def send(
        self, kind: str, orders: Iterable[tuple[int, Any]], group: str, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send ``(node, order)`` pairs; yield replies as they come, each from the node that was asked, once.

        A reply that cannot be read is yielded as an error of its node.

        Args:
            timeout: seconds, ``federation.timeout`` if None. A reply that has not come whole by then is not used.

        Raises:
            StopRequested: asked to stop while waiting.
        """
        seconds = self.federation.timeout if timeout is None else timeout
        # One that a site fetches much later must not cost it the time for the next one. Its life begins before all are
        # sent, its deadline afterwards: sending may take as long as the deadline.
        messages = self._messages(kind, orders, group, 2 * seconds + _GRACE)
        if not messages:
            return
        self.stop.check()
        if self._virtual:
            yield from self._computed(messages, seconds)
            return
        self._push(messages)
        try:
            yield from self.replies(messages, seconds)
        finally:
            self.forget(messages, overdue=True)

    def post(
        self, kind: str, orders: Iterable[tuple[int, Any]], group: str, timeout: float | None = None
    ) -> list[Message]:
        """Send ``(node, order)`` pairs without waiting; :meth:`replies` has what comes until :meth:`forget`.

        Args:
            timeout: seconds for which replies will be of use; half a day at least if None.
        """
        # Flower drops a message without a reply after its time to live: it is longer than our waiting.
        long = max(_HALF_DAY, self.federation.timeout + 3600.0)
        messages = self._messages(kind, orders, group, long if timeout is None else 2 * timeout + _GRACE)
        if messages:
            self._push(messages)
        return messages

    def replies(self, messages: Sequence[Message], seconds: float) -> Iterator[Message]:
        """What comes within ``seconds`` for messages that were sent; the others can still be answered.

        Only a few replies are in memory at a time: more of them may be at the SuperLink when the time is over. They are
        fetched then, as the caller makes room for them. The caller may stop after any of them, and begin again.

        Raises:
            StopRequested: asked to stop while waiting.
        """
        waiting = {message.metadata.message_id: message for message in messages}
        deadline = self._inbox.deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            self.stop.check()
            arrival = self._inbox.take(waiting.keys(), min(left, _LISTEN))
            self._refuse_late()
            if arrival is not None:
                yield from self._answers(arrival, waiting)
            if self.deployed and time.monotonic() - self._looked > _LOOK:
                self._looked = time.monotonic()
                self._give_up_lost(waiting)
        yield from self._come_in_time(waiting)

    def _come_in_time(self, waiting: dict[str, Message]) -> Iterator[Message]:
        """What was there when the time was over; what comes afterwards is not waited for."""
        orders, last = set(waiting), time.monotonic()
        self._inbox.hurry(orders)
        while orders and time.monotonic() - last < _FETCHED:
            self.stop.check()
            orders = self._inbox.in_time(orders & waiting.keys())
            arrival = self._inbox.take(orders, _FETCH if orders else 0.0)
            self._refuse_late()
            if arrival is not None:
                orders.discard(arrival.order)  # once: a site that answers nonsense again and again gains no time
                yield from self._answers(arrival, waiting)
                last = time.monotonic()

    def forget(self, messages: Sequence[Message], overdue: bool = False) -> None:
        """Do not look for replies to these messages any more.

        Args:
            overdue: whether an event tells of one that is on its way, when it has come.
        """
        orders = {message.metadata.message_id for message in messages}
        self._inbox.forget(orders, overdue)
        self._restarts.forget(orders)

    def close(self) -> None:
        """Look for no replies any more."""
        self._inbox.close()

    def count(self, order: Any, received: int) -> None:
        """Count an exchange that an earlier process of this run had with a client, whose reply was of so many bytes."""
        down = codec.size(codec.encode(order, self.federation.wire))
        self.tally.add(self.traffic, self.node(order.client), down, received)
        self.traffic["orders"] += 1

    def _messages(self, kind: str, orders: Iterable[tuple[int, Any]], group: str, ttl: float) -> list[Message]:
        messages = []
        orders = list(orders)
        contents = codec.encode_all([order for _, order in orders], self.federation.wire)
        for (node, _), content in zip(orders, contents, strict=True):
            self.tally.add(self.traffic, node, down=codec.size(content))
            self.traffic["orders"] += 1
            if self.deployed:
                # An order's id is a hash of its content, and Flower takes a reply to it from any site: a site that
                # can guess the rest of an order must not be able to guess its id.
                content["nonce"] = ConfigRecord({"nonce": secrets.token_hex(16)})
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl))
        return messages

    def _push(self, messages: list[Message]) -> None:
        """Send messages and look for their replies; one that cannot be sent is answered with an error here."""
        before = self._activations() if self.deployed else {}
        pushed = set(self._patiently(lambda: self.grid.push_messages(messages)))
        after = self._activations() if self.deployed else {}  # that may have taken minutes
        for message in messages:
            order, node = message.metadata.message_id, message.metadata.dst_node_id
            if order in pushed:
                self._restarts.sent(order, node, before, after)
                self._inbox.expect(node, order)
            else:
                error = Error(code=UNKNOWN, reason="the message could not be sent")
                self._inbox.put(order, Message(error, reply_to=message))

    def _activations(self) -> dict[int, str]:
        return {info.node_id: info.last_activated_at for info in self._all_nodes()}

    def _give_up_lost(self, waiting: dict[str, Message]) -> None:
        """Let orders that were lost at a restart of their node be answered with an error."""
        for order in self._restarts.lost(waiting.keys(), self._activations()):
            self.forget([waiting[order]])
            error = Error(NODE_UNAVAILABLE, "it was restarted while it had an order")
            self._inbox.put(order, Message(error, reply_to=waiting[order]))

    def _computed(self, messages: list[Message], seconds: float) -> Iterator[Message]:
        """The replies of virtual clients."""
        waiting: dict[str, Message] | None = None
        for reply in self.grid.send_and_receive(messages, timeout=seconds):
            if waiting is None:  # they get their ids when they are sent, which may be when this reply is requested
                waiting = {message.metadata.message_id: message for message in messages}
            if (matched := self._matched(reply, waiting)) is not None:
                yield matched
            self.stop.check()

    def _answers(self, arrival: Arrival, waiting: dict[str, Message]) -> Iterator[Message]:
        """The reply in what came for an order, which is then not waited for any longer; an error if it is none."""
        order = waiting[arrival.order]
        if arrival.problem:
            del waiting[arrival.order]
            yield Message(Error(code=arrival.code, reason=printable(arrival.problem)), reply_to=order)
            return
        matched = [reply for each in arrival.replies if (reply := self._matched(each, waiting)) is not None]
        if arrival.order in waiting:
            self._inbox.expect(order.metadata.dst_node_id, arrival.order)
        yield from matched

    def _matched(self, reply: Message, waiting: dict[str, Message]) -> Message | None:
        """The reply, if it is one to a waiting message and comes from the node that the message was sent to."""
        source = reply.metadata.src_node_id
        order = waiting.get(reply.metadata.reply_to_message_id)
        if order is None:
            self._refuse(source, "answers no order that is open: it is late, or came twice")
            return None
        target = order.metadata.dst_node_id
        # Flower itself replies for a node that has disconnected; it is treated as that node's error.
        by_flower = reply.has_error() and source == SERVER_NODE != target
        if source != target and not by_flower:
            self._refuse(source, f"another node answered for client {self.client(target)}")
            return None
        del waiting[reply.metadata.reply_to_message_id]
        if reply.has_error():
            # A client's own words, which events, logs and the operator's terminal will show.
            code, reason = reply.error.code, printable(reply.error.reason or "")
            return Message(Error(code, reason or f"error {code}, no reason given"), reply_to=order)
        if not reply.has_content():
            return Message(Error(code=UNKNOWN, reason="its reply is empty"), reply_to=order)
        self.tally.add(self.traffic, source, up=codec.size(reply.content))
        return reply

    def _refuse(self, source: int, reason: str) -> None:
        self.traffic["rejected"] = self.traffic.get("rejected", 0) + 1
        self.say("rejected", client=self.client(source), reason=reason)

    def _refuse_late(self) -> None:
        for node in self._inbox.late():
            self._refuse(node, "its reply has come whole only after the deadline (federation.timeout)")

    def ask(self, kind: str, node: int, order: Any, expected: type) -> Any:
        """Send one order and return the reply, of the expected type.

        Raises:
            RunError: no reply, or the client reports an error.
        """
        for reply in self.send(kind, [(node, order)], kind):
            if reply.has_error():
                raise RunError(f"{kind}: {reply.error.reason}")
            return codec.decode(reply.content, expected, reply=True)
        raise RunError(f"{kind}: no answer within {self.federation.timeout:.0f} s (federation.timeout)")
