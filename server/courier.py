"""Carries orders to nodes and answers back, counting bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.records import Name


class Courier:
    """The server's side of the wire.

    Args:
        clients: how many clients must be connected; client k is the node that the operator named "k".
        traffic: counters ``up``, ``down`` (bytes as encoded) and ``orders``, added to in place.

    Raises:
        RunError: clients are missing.
    """

    def __init__(self, grid: Grid, federation: Federation, clients: int, traffic: dict[str, int]) -> None:
        self.grid, self.federation, self.traffic = grid, federation, traffic
        named = self._named(clients)
        missing = [str(k) for k in range(clients) if str(k) not in named]
        if missing:
            raise RunError(f"{len(missing)} of {clients} clients are not connected (first: client {missing[0]})")
        self.nodes = [named[str(k)] for k in range(clients)]

    def _named(self, clients: int) -> dict[str, int]:
        """Node ids by client. Names come from the operator; only where no node has one (Flower's own
        simulation, whose nodes appear shortly after the server starts) the nodes are asked."""
        deadline = time.monotonic() + min(60.0, self.federation.timeout)
        nodes = list(self.grid.get_nodes())
        while len(nodes) < clients and time.monotonic() < deadline:
            time.sleep(0.1)
            nodes = list(self.grid.get_nodes())
        if any(node.name for node in nodes):
            return {node.name: node.node_id for node in nodes}
        asked = [Message(RecordDict(), dst_node_id=n.node_id, message_type="query.whoami") for n in nodes]
        found: dict[str, int] = {}
        for reply in self.grid.send_and_receive(asked, timeout=self.federation.timeout):
            if reply.has_content():
                name = str(codec.decode(reply.content, Name).client)
                if found.setdefault(name, reply.metadata.src_node_id) != reply.metadata.src_node_id:
                    raise RunError(f"two nodes say they are client {name}")
        return found

    def node(self, client: int) -> int:
        """Node of a client; the participant of pooled references lives on the first node."""
        return self.nodes[max(client, 0)]

    def send(self, kind: str, orders: Iterable[tuple[int, Any]], group: str) -> Iterator[Message]:
        """Send ``(node, order)`` pairs; yield replies as they come."""
        messages = []
        memo: dict[int, Any] = {}
        for node, order in orders:
            content = codec.encode(order, self.federation.wire, memo)
            self.traffic["down"] += codec.size(content)
            self.traffic["orders"] += 1
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=group))
        for reply in self.grid.send_and_receive(messages, timeout=self.federation.timeout):
            if reply.has_content():
                self.traffic["up"] += codec.size(reply.content)
            yield reply

    def ask(self, kind: str, node: int, order: Any, expected: type) -> Any:
        """One order, one answer of the expected type.

        Raises:
            RunError: no answer, or the client reports an error.
        """
        for reply in self.send(kind, [(node, order)], kind):
            if reply.has_error():
                raise RunError(f"{kind}: {reply.error.reason}")
            return codec.decode(reply.content, expected)
        raise RunError(f"{kind}: no answer within {self.federation.timeout:.0f} s (federation.timeout)")
