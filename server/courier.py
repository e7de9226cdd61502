"""Carries orders to nodes and answers back, counting bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.errors import RunError
from fcit.federation import codec


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
        named = {node.name: node.node_id for node in grid.get_nodes()}
        missing = [str(k) for k in range(clients) if str(k) not in named]
        if missing:
            raise RunError(f"{len(missing)} of {clients} clients are not connected (first: client {missing[0]})")
        self.nodes = [named[str(k)] for k in range(clients)]

    def node(self, client: int) -> int:
        """Node of a client; the participant of pooled references lives on the first node."""
        return self.nodes[max(client, 0)]

    def send(self, kind: str, orders: Iterable[tuple[int, Any]], group: str) -> Iterator[Message]:
        """Send ``(node, order)`` pairs; yield replies as they come."""
        messages = []
        orders = list(orders)  # alive as long as the memo
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
