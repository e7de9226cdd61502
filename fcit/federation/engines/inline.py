"""The inline engine: every client runs in this process, one after the other.

A ``flwr.serverapp.Grid`` like any other, so server and client code cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fcit.config import RunConfig
from fcit.errors import ConfigError, StopRequested
from fcit.federation.engines import identity
from fcit.federation.engines.identity import NodeInfo, Run

CLIENT_RAISED = 2  # Flower's code for an exception in the ClientApp
FIRST_NODE = 1000


class InlineGrid(Grid):
    """Runs messages as they are pulled.

    Args:
        client_app: the ClientApp.
        config: as every engine takes it; not needed here.
        memory: folder in which clients may remember between their orders.
        clients: number of virtual clients; client k is node ``FIRST_NODE + k`` and finds k as
            ``partition-id`` in its node configuration.
    """

    summary = "every client in this process, one after the other"
    #: Errors about this process or this run, not about one client.
    fatal: ClassVar[tuple[type[Exception], ...]] = (StopRequested, ConfigError)

    def __init__(
        self, client_app: ClientApp, clients: int, config: RunConfig | None = None, memory: Path | None = None
    ) -> None:
        identity.claim()
        self._app = client_app
        self._clients = clients
        self._run_config: dict = {} if memory is None else {"client-memory": str(memory)}
        self._waiting: dict[str, Message] = {}
        self._contexts: dict[int, Context] = {}
        self._count = 0
        self._run = Run.create_empty(run_id=1)

    def close(self) -> None:
        """Nothing to give back."""

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

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self._count += 1
            identity.number(message, f"message-{self._count}")
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._work(self._waiting.pop(key)) for key in message_ids if key in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies one by one, each computed when it is asked for: one update in memory at a time."""
        for key in self.push_messages(messages):
            yield from self.pull_messages([key])

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            config: dict = {"partition-id": node - FIRST_NODE, "num-partitions": self._clients}
            self._contexts[node] = Context(
                run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config=self._run_config
            )
        return self._contexts[node]

    def _work(self, message: Message) -> Message:
        try:
            return self._app(message, self._context(message.metadata.dst_node_id))
        except self.fatal:
            raise
        except Exception as error:  # noqa: BLE001  (one bad client never ends a run; the reason travels back)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)
