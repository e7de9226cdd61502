"""The inline engine: every client runs in this process, one after the other.

A ``flwr.serverapp.Grid`` like any other, so server and client code cannot tell the difference.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fcit.config import RunConfig
from fcit.errors import ConfigError, DiskFull, FCITError, StopRequested
from fcit.federation.engines.virtual import VirtualGrid
from fcit.federation.nodes import CLIENT_RAISED, FIRST_NODE


class InlineGrid(VirtualGrid):
    """Runs messages as they are pulled.

    Args:
        client_app: the ClientApp.
        config: as every engine takes it; not needed here.
        memory: folder in which clients may remember between their orders.
        clients: number of virtual clients; client k finds k as ``partition-id`` in its node configuration.

    Attributes:
        cpu_seconds: CPU time of all clients' work so far; other engines, whose work is in other processes, have none.
    """

    summary = "every client in this process, one after the other"
    here = True
    #: Errors about this process or this run, not about one client.
    fatal: ClassVar[tuple[type[Exception], ...]] = (StopRequested, ConfigError, DiskFull)

    def __init__(
        self, client_app: ClientApp, clients: int, config: RunConfig | None = None, memory: Path | None = None
    ) -> None:
        super().__init__(clients)
        self._app, self.cpu_seconds = client_app, 0.0
        self._run_config: dict = {} if memory is None else {"client-memory": str(memory)}
        self._waiting: dict[str, Message] = {}
        self._contexts: dict[int, Context] = {}

    def close(self) -> None:
        """Nothing to release."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(self._number(message))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._work(self._waiting.pop(key)) for key in message_ids if key in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies one by one, each computed when it is requested: one update in memory at a time."""
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
        begin = time.process_time()
        try:
            return self._app(message, self._context(message.metadata.dst_node_id))
        except self.fatal:
            raise
        except Exception as error:  # noqa: BLE001  (one bad client never ends a run; the reason travels back)
            # First the sentence, then where it happened: tables show the first line, events.jsonl all of it.
            trail = "" if isinstance(error, FCITError) else "".join(traceback.format_tb(error.__traceback__))
            reason = f"{type(error).__name__}: {error}\n{trail}".rstrip()
            return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)
        finally:
            self.cpu_seconds += time.process_time() - begin
