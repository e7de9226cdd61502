"""Carries orders to nodes and replies back, counting bytes."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.messages import Name
from fcit.federation.nodes import SERVER_NODE
from fcit.io.console import printable
from server.stop import Stop

NOBODY = 0  # the node of a client that is not connected; Flower gives this id to no node
_CLIENT = re.compile(r"0|[1-9][0-9]*")  # how the operator names the node of a client
_NAP, _LONGEST_NAP = 0.05, 1.0  # seconds between two looks for replies
_APPEAR = 60.0  # seconds in which all nodes of Flower's own simulation must have appeared
_HALF_DAY = 12 * 3600.0


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
        self.stop = stop or Stop()
        self._clients = clients
        #: Whether this is a deployment, whose sites may connect and disconnect during the run.
        self.deployed = False
        self._nodes: dict[int, int] = {}
        self._virtual = bool(getattr(grid, "virtual", False))
        if self._virtual:
            self._nodes = {int(node.name): node.node_id for node in grid.get_nodes() if int(node.name) < clients}

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
        """Wait for the clients: for all in a simulation, for ``min_updates`` of them in deployment.

        Raises:
            RunError: too few within ``federation.timeout`` (a simulation: a minute).
        """
        if self._nodes:
            return
        begin = time.monotonic()
        while not (nodes := list(self.grid.get_nodes())) and time.monotonic() - begin < self.federation.timeout:
            self.stop.pause(_LONGEST_NAP)
        self.deployed = any(node.name for node in nodes)
        if nodes and not self.deployed:
            self._ask_names(begin + min(_APPEAR, self.federation.timeout))
            return
        enough = min(self.federation.min_updates, self._clients)
        while len(connected := self.connected()) < enough and time.monotonic() - begin < self.federation.timeout:
            self.stop.pause(_LONGEST_NAP)
        if len(connected) < enough:
            raise RunError(
                f"{len(connected)} of {self._clients} clients are connected after {self.federation.timeout:.0f} s "
                f"(federation.timeout), {enough} are needed (federation.min_updates); client k is the node that "
                "`flwr supernode register ... --name k` named; start the sites and resume the run"
            )

    def _ask_names(self, deadline: float) -> None:
        """Flower's own simulation: nodes appear shortly after the server starts and are asked for their client."""
        while len(nodes := list(self.grid.get_nodes())) < self._clients and time.monotonic() < deadline:
            self.stop.pause(2 * _NAP)
        queries = [Message(RecordDict(), dst_node_id=n.node_id, message_type="query.whoami") for n in nodes]
        for reply in self._replies(queries):
            if reply.has_content():
                client, node = codec.decode(reply.content, Name).client, reply.metadata.src_node_id
                if self._nodes.setdefault(client, node) != node:
                    raise RunError(f"two nodes say they are client {client}")
        missing = [k for k in range(self._clients) if k not in self._nodes]
        if missing:
            raise RunError(f"{len(missing)} of {self._clients} clients are not connected (first: client {missing[0]})")

    def connected(self) -> dict[int, Node]:
        """Deployment: the nodes that are connected now, by client.

        Raises:
            RunError: two of them have the same name.
        """
        nodes: dict[int, Node] = {}
        for info in self.grid.get_nodes():
            client = int(info.name) if _CLIENT.fullmatch(info.name) else self._clients
            if client >= self._clients:
                continue
            if client in nodes:
                raise RunError(
                    f"two connected nodes are registered as client {client} (ids {nodes[client].id} and "
                    f"{info.node_id}); remove one with `flwr supernode unregister` and resume the run"
                )
            nodes[client] = Node(info.node_id, info.last_activated_at)
        return nodes

    def seat(self, nodes: dict[int, int]) -> None:
        """Deployment: set the nodes that take part from now on, by client."""
        self._nodes = dict(nodes)

    @property
    def nodes(self) -> list[int]:
        """Nodes that take part, by ascending client."""
        return [self._nodes[client] for client in sorted(self._nodes)]

    def node(self, client: int) -> int:
        """Node of a client, :data:`NOBODY` if it is not connected.

        The participant of pooled references lives on the first node.
        """
        return self._nodes.get(max(client, 0), NOBODY)

    def client(self, node: int) -> int | None:
        """The client at a node."""
        return next((client for client, its_node in self._nodes.items() if its_node == node), None)

    # ------------------------------------------------------------------ orders and replies

    def send(
        self, kind: str, orders: Iterable[tuple[int, Any]], group: str, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send ``(node, order)`` pairs; yield replies as they come, each from the node that was asked, once.

        Args:
            timeout: seconds, ``federation.timeout`` if None.

        Raises:
            StopRequested: asked to stop while waiting.
        """
        messages = []
        orders = list(orders)
        contents = codec.encode_all([order for _, order in orders], self.federation.wire)
        for (node, _), content in zip(orders, contents, strict=True):
            self.traffic["down"] += codec.size(content)
            self.traffic["orders"] += 1
            if self.deployed:
                # An order's id is a hash of its content, and Flower takes a reply to it from any site: a site that
                # can guess the rest of an order must not be able to guess its id.
                content["nonce"] = ConfigRecord({"nonce": secrets.token_hex(16)})
            # Flower drops a message without a reply after its time to live: it is longer than our waiting.
            ttl = max(_HALF_DAY, self.federation.timeout + 3600.0)
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl))
        for reply in self._replies(messages, timeout):
            if reply.has_content():
                self.traffic["up"] += codec.size(reply.content)
            yield reply

    def count(self, order: Any, reply: Any) -> None:
        """Count an exchange that an earlier process of this run had with a client."""
        self.traffic["down"] += codec.size(codec.encode(order, self.federation.wire))
        self.traffic["up"] += codec.size(codec.encode(reply, self.federation.wire))
        self.traffic["orders"] += 1

    def _replies(self, messages: list[Message], timeout: float | None = None) -> Iterator[Message]:
        """The replies to these messages; everything else is refused here."""
        if not messages:
            return
        seconds = self.federation.timeout if timeout is None else timeout
        self.stop.check()
        if self._virtual:
            received: Iterable[Message] = self.grid.send_and_receive(messages, timeout=seconds)
        else:
            received = self._pulled(messages, seconds)
        # Messages get their ids when they are sent, which may be when the first reply is requested.
        waiting: dict[str, Message] | None = None
        for reply in received:
            if waiting is None:
                waiting = {message.metadata.message_id: message for message in messages}
            matched = self._matched(reply, waiting)
            if matched is not None:
                yield matched
            self.stop.check()

    def _matched(self, reply: Message, waiting: dict[str, Message]) -> Message | None:
        """The reply, if it is one to a waiting message and comes from the node that the message was sent to."""
        source = reply.metadata.src_node_id
        order = waiting.get(reply.metadata.reply_to_message_id)
        if order is None:
            self._refuse(source, "answers no order that is open: it is late, or came twice")
            return None
        target = order.metadata.dst_node_id
        if reply.has_error() and source == SERVER_NODE != target:
            # Flower itself replies for a node that has disconnected; it is treated as that node's error.
            reply = Message(Error(code=reply.error.code, reason=reply.error.reason), reply_to=order)
        elif source != target:
            self._refuse(source, f"another node answered for client {self.client(target)}")
            return None
        elif reply.has_error():
            # A client's own words, which events, logs and the operator's terminal will show.
            reply = Message(Error(code=reply.error.code, reason=printable(reply.error.reason)), reply_to=order)
        del waiting[reply.metadata.reply_to_message_id]
        return reply

    def _refuse(self, source: int, reason: str) -> None:
        self.traffic["rejected"] = self.traffic.get("rejected", 0) + 1
        self.say("rejected", client=self.client(source), reason=reason)

    def _pulled(self, messages: list[Message], timeout: float) -> Iterator[Message]:
        """Replies by Flower's push and pull: its own waiting cannot be interrupted by a request to stop."""
        deadline, nap = time.monotonic() + timeout, _NAP
        pushed = set(self.grid.push_messages(messages))
        for message in messages:
            if message.metadata.message_id not in pushed:
                yield Message(Error(code=0, reason="the message could not be sent"), reply_to=message)
        waiting = {message.metadata.message_id for message in messages} & pushed
        while waiting and time.monotonic() < deadline:
            replies = list(self.grid.pull_messages(sorted(waiting)))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            yield from replies
            nap = _NAP if replies else min(1.5 * nap, _LONGEST_NAP)
            if waiting:
                self.stop.pause(min(nap, max(deadline - time.monotonic(), 0.0)))

    def ask(self, kind: str, node: int, order: Any, expected: type) -> Any:
        """Send one order and return the reply, of the expected type.

        Raises:
            RunError: no reply, or the client reports an error.
        """
        for reply in self.send(kind, [(node, order)], kind):
            if reply.has_error():
                raise RunError(f"{kind}: {reply.error.reason}")
            return codec.decode(reply.content, expected)
        raise RunError(f"{kind}: no answer within {self.federation.timeout:.0f} s (federation.timeout)")
