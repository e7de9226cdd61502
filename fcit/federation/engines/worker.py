"""What runs inside a worker process of an engine: the ClientApp, one order at a time."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

from flwr.app import Array, Message
from flwr.clientapp import ClientApp

from fcit.errors import ConfigError, DiskFull, StopRequested
from fcit.federation import codec
from fcit.federation.engines.inline import InlineGrid


class Order(NamedTuple):
    """A message to a client as it travels between two processes of a run."""

    kind: str
    node: int
    group: str
    head: str
    arrays: dict[str, Array]


class Outcome(NamedTuple):
    """What a worker returns for an order: ``content`` with its message, or the reason of an ``error`` of the client.

    After ``memory`` (it ran out in this order) and ``lost`` (the process died) the worker is replaced.
    """

    kind: str
    text: str
    arrays: dict[str, Array]


class _Grid(InlineGrid):
    """Inside a worker, running out of memory is about the process: it is replaced and the order repeated."""

    fatal: ClassVar[tuple[type[Exception], ...]] = (StopRequested, ConfigError, DiskFull, MemoryError)


class Worker:
    """Carries out orders with one ClientApp for as long as its process lives."""

    def __init__(self, app: ClientApp, clients: int, memory: Path) -> None:
        self._grid = _Grid(app, clients, memory=memory)

    def work(self, order: Order) -> Outcome:
        """Carry out one order.

        Raises:
            StopRequested, ConfigError, DiskFull: about the run, not about one client.
        """
        content = codec.put_together(order.head, order.arrays)
        message = Message(content, dst_node_id=order.node, message_type=order.kind, group_id=order.group)
        try:
            reply = next(iter(self._grid.send_and_receive([message])))
        except MemoryError as error:
            return Outcome("memory", str(error) or "MemoryError", {})
        if reply.has_error():
            return Outcome("error", str(reply.error.reason), {})
        return Outcome("content", *codec.take_apart(reply.content))
