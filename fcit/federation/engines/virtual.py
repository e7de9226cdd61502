"""The base of grids of virtual clients: their nodes and the numbers of their messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fcit.config import RunConfig
from fcit.federation.engines import private
from fcit.federation.engines.private import NodeInfo, Run
from fcit.federation.nodes import FIRST_NODE


class VirtualGrid(Grid):
    """A grid whose clients exist in name only: client k is node ``FIRST_NODE + k``, named "k".

    Args:
        clients: number of virtual clients.
    """

    #: Marks for the server that every client is connected from the start.
    virtual: ClassVar[bool] = True
    #: Whether the clients' work is done in this process, which must then load the ClientApp.
    here: ClassVar[bool] = False

    @classmethod
    def of(cls, config: RunConfig) -> type[VirtualGrid]:
        """The engine to use for a configuration."""
        return cls

    def __init__(self, clients: int) -> None:
        private.claim()
        self._clients = clients
        self._run = Run.create_empty(run_id=1)
        self._count = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=str(node - FIRST_NODE)) for node in self.get_node_ids()]

    def _number(self, message: Message) -> str:
        """Give a message its id."""
        self._count += 1
        private.number(message, f"message-{self._count}")
        return str(message.metadata.message_id)
