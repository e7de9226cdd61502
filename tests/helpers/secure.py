"""Rounds of secure aggregation: the collector and clients on disk, without a model."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
from flwr.app import Error, Message

from clients.worker import secure
from clients.worker.memory import ClientMemory
from fcit import config as configuration
from fcit.errors import Refused
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.messages import (
    ClientUpdate,
    KeysOrder,
    MaskOrder,
    ShareOrder,
    TrainOrder,
    UnmaskOrder,
)
from fcit.methods.base import Method, ServerState
from fcit.runs.folder import RunDir
from server.checkpoint import Progress
from server.participants import Slot
from server.secure import SecureCollector
from server.sums import Sums
from tests.helpers.grids import answer
from tests.helpers.toy import f32

KINDS = {
    "query.keys": (KeysOrder, secure.keys),
    "query.shares": (ShareOrder, secure.share),
    "train.masked": (MaskOrder, secure.train),
    "query.unmask": (UnmaskOrder, secure.unmask),
}
A, B = "x.lora_A.weight", "x.lora_B.weight"
OLD = {A: f32(0.5, -0.25, 0), B: f32(0, 0, 1)}
SHARED = {"p": f32(1, 2)}
SUBSPACES = ["0", "0", "0", "0", "1", "1"]


def trained(client: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(client)
    return {n: t + rng.uniform(-0.3, 0.3, t.shape).astype(np.float32) for n, t in {**SHARED, **OLD}.items()}


def records(client: int) -> int:
    return 10 + 7 * client


class Client:
    """A client's orders on disk and by the code that sites run; what it does not do it answers with an error."""

    def __init__(self, number, config, folder):
        self.number, self.refuses = number, set[str]()
        self.asked: list[str] = []
        self.last: dict[str, object] = {}
        self.change = lambda reply: reply
        # Any process may serve a client, so each order is done by another one.
        self.worker = lambda: SimpleNamespace(config=config, memory=ClientMemory(folder), trained=self._trained)

    def _trained(self, order):
        return ClientUpdate(
            stage=order.stage,
            round=order.round,
            client=order.client,
            shard=order.shard,
            subspace=order.subspace,
            examples=records(order.client),
            steps=2,
            loss=0.5 + order.client,
            seconds=1.5,
            tensors={n: trained(order.client)[n] for n in order.trained},
        )

    def __call__(self, message):
        kind = message.metadata.message_type
        self.asked.append(kind)
        if kind in self.refuses:
            return [Message(Error(code=0, reason="gone"), reply_to=message)]
        form, work = KINDS[kind]
        self.last[kind] = order = codec.decode(message.content, form, writable=True)
        try:
            return [answer(message, self.change(work(self.worker(), order)))]
        except Refused as error:
            return [Message(Error(code=0, reason=f"refused {error}"), reply_to=message)]


class Placed(Method):
    """Its clients are in the subspaces that a test gives them."""

    def common(self, stage):
        return None


class Wire:
    """Stands where the courier stands: every order and every reply is a message of Flower's."""

    def __init__(self, clients):
        private.claim()
        self.clients = clients

    def node(self, client):
        return client + 1

    def client(self, node):
        return node - 1

    def send(self, kind, orders, group):
        for number, (node, order) in enumerate(orders):
            message = Message(codec.encode(order), dst_node_id=node, message_type=kind, group_id=group)
            private.number(message, f"{kind}{number}")
            yield from self.clients[self.client(node)](message)


class Round:
    """One round of six clients; four train subspace 0, two subspace 1."""

    def __init__(self, folder, subspaces=SUBSPACES, dp=None, federation=None, **privacy):
        clients = len(subspaces)
        self.config = configuration.parse(
            {
                "method": "finetune",
                "federation": {
                    "clients": clients,
                    "clients_per_round": clients,
                    "on_too_few": "stop",
                    **(federation or {}),
                },
                "privacy": {"secure_aggregation": "on", "quantise_bits": 32, **privacy, **(dp or {})},
            }
        )
        self.events: list[dict] = []
        self.clients = [Client(k, self.config, folder) for k in range(clients)]
        self.slots = [Slot(k, f"s{k}", (0,)) for k in range(clients)]
        self.state = ServerState(
            subspaces={name: dict(OLD) for name in sorted(set(subspaces))},
            shared=dict(SHARED),
            assigned={slot.pair: subspaces[slot.client] for slot in self.slots},
        )
        progress = Progress(declared={f"{k}/s{k}": records(k) for k in range(clients)})
        self.sums, self.clip = Sums(), (dp or {}).get("clip")
        said = SimpleNamespace(
            round_event=lambda kind, **v: self.events.append({"event": kind, **v}),
            show=lambda kind, **v: self.events.append({"event": kind, **v}),
            timed=lambda part: nullcontext(),
        )
        self.collector = SecureCollector(
            config=self.config,
            stream=None,
            run=RunDir(folder),
            state=self.state,
            progress=progress,
            orders=SimpleNamespace(text="", run="r", train=self._order, method=Placed(self.config)),
            courier=Wire(self.clients),
            handshake=SimpleNamespace(update=lambda: None),
            assigner=SimpleNamespace(assign=lambda slots: None),
            journal=said,
            stop=SimpleNamespace(pause=lambda seconds: None),
            sums=self.sums,
            clip=lambda: self.clip,
        )

    def _order(self, state, progress, slot, measure=False):
        name = state.assigned[slot.pair]
        return TrainOrder(
            config="",
            stage=0,
            round=0,
            client=slot.client,
            shard=slot.shard,
            tasks=[0],
            subspace=name,
            tensors={**state.shared, **state.subspaces[name]},
            run="r",
        )

    def gather(self):
        return sorted(client for client, _ in self.collector.gather(self.slots).accepted)

    def of(self, *kinds):
        return [event for event in self.events if event["event"] in kinds]
