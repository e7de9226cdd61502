"""Which node is which client, both ways."""

from __future__ import annotations

from collections.abc import Mapping


class Seats:
    """The nodes of clients; a pool may be large, and every message asks.

    Attributes:
        nodes: by client.
        clients: by node.
    """

    def __init__(self, nodes: Mapping[int, int] | None = None) -> None:
        self.nodes = dict(nodes or {})
        self.clients = {node: client for client, node in self.nodes.items()}

    def add(self, client: int, node: int) -> bool:
        """Seat a client, unless it has a node; whether it has this one now."""
        if self.nodes.setdefault(client, node) != node:
            return False
        self.clients[node] = client
        return True
