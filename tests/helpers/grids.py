"""A deployment's grid that tells any story, and a courier on it."""

import threading
from collections.abc import Callable

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.engines.private import NodeInfo
from fcit.federation.messages import Probe
from server.courier import Courier
from server.stop import Stop
from tests.helpers.waiting import LONG

Story = Callable[[Message], list[Message]]


def probe(**changes) -> Probe:
    plain = {
        "shapes": {"x": [2, 3]},
        "identity_width": 4,
        "versions": {"torch": "2.13", "threads": "1"},
        "tensors": {"p": np.ones(2, np.float32)},
        "hashes": {"backbone": "abc"},
    }
    return Probe(**{**plain, **changes})


def answer(message: Message, record: object) -> Message:
    return Message(codec.encode(record), reply_to=message)


def moved(reply: Message, **metadata) -> Message:
    """The same reply with other metadata, as no honest node would send it."""
    for name, value in metadata.items():
        reply.metadata.__dict__[f"_{name}"] = value
    return reply


class FakeGrid(Grid):
    """A deployment: nodes by name, answers by a story told per node, handed out at the next pull."""

    def __init__(self, **names: str) -> None:
        private.claim()
        self.names = {int(key.removeprefix("n")): name for key, name in names.items()}
        self.restarts: dict[int, int] = {}
        self.story: dict[int, Story] = {}
        self.asked: list[int] = []
        self.sent: dict[str, Message] = {}
        self.mail: dict[str, list[Message]] = {}  # by the id of the order
        self.unreadable: dict[int, Exception] = {}  # by node
        self.withheld: dict[int, threading.Event] = {}  # by node: its parts have all come
        self.looked = 0
        self._count = 0

    def set_run(self, run) -> None: ...

    @property
    def run(self):
        return None

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.names)

    def get_nodes(self):
        self.looked += 1
        return [
            NodeInfo(node_id=n, name=name, last_activated_at=str(self.restarts.get(n, 0)))
            for n, name in self.names.items()
        ]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._count += 1
            private.number(message, f"m{self._count}")
            ids.append(message.metadata.message_id)
            node = message.metadata.dst_node_id
            self.asked.append(node)
            self.sent[ids[-1]] = message
            self.mail[ids[-1]] = self.story.get(node, lambda m: [answer(m, probe())])(message)
        return ids

    def pull_messages(self, message_ids):
        (order,) = message_ids
        node = self.sent[order].metadata.dst_node_id
        if node in self.withheld:
            self.withheld[node].wait(LONG)
        if node in self.unreadable:
            raise self.unreadable[node]
        return self.mail.pop(order, [])

    def answer_late(self, node: int, record: object) -> None:
        """Let a node answer the first of the orders that it was sent and has not answered."""
        order = next(m for m in self.sent.values() if m.metadata.dst_node_id == node)
        self.mail[order.metadata.message_id] = [answer(order, record)]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def courier(grid: Grid, events: list[dict], clients: int = 3, stop: Stop | None = None, **federation) -> Courier:
    settings = Federation.model_validate({"clients": clients, "timeout": 0.4, "min_updates": 2, **federation})
    traffic = {"up": 0, "down": 0, "orders": 0, "rejected": 0}
    return Courier(grid, settings, clients, traffic, lambda kind, **v: events.append({"event": kind, **v}), stop)
