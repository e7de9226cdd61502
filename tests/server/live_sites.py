"""An asynchronous run of a deployment whose sites are a line of arithmetic.

They are behind a courier that tells any story, on a clock of its own: no second passes here.
"""

import heapq
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from fcit import config as configuration
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate
from fcit.fedopt.staleness import RULES
from fcit.methods.base import ServerState
from fcit.methods.finetune import Finetune
from fcit.runs.folder import RunDir
from server import checkpoint
from server.checkpoint import Progress
from server.courier import NOBODY
from server.dispatch import Places
from server.late import LateSpill
from server.live import LiveCollector
from server.orders import Orders
from server.real_time import RealTime
from server.timeline import Timeline
from server.validation import Validator
from tests.server.test_asynchronous import SECONDS, Stream

NEVER = float("inf")


class Killed(BaseException):
    """The server's process ends here."""


class Sites:
    """A courier and a handshake: client k needs ``seconds[k]`` for an order, at node k + 1."""

    def __init__(self, seconds=SECONDS, end=NEVER):
        self.seconds, self.end = list(seconds), end
        self.now, self.there = 0.0, set(range(len(self.seconds)))
        self.later: list[tuple[float, int, str, object]] = []  # when, client, message and reply
        self.junk: set[int] = set()
        self.given: list[tuple[float, int]] = []
        self.stories: list[tuple[float, object]] = []  # what happens at a time
        self._count = 0
        self._seats: dict[int, int] = {}
        self.tally = SimpleNamespace(add=lambda *args: None)

    # -- a handshake

    def glance(self, asked, busy):
        self._seats = {k: k + 1 for k in self.there | set(busy)}

    def update(self):
        self.glance(set(), set())

    # -- a courier

    def node(self, client):
        return self._seats.get(client, NOBODY)

    def client(self, node):
        return node - 1

    def count(self, order, received):
        pass

    def forget(self, messages):
        pass

    def post(self, kind, orders, group, timeout):
        messages = []
        for node, order in orders:
            self._count += 1
            metadata = SimpleNamespace(message_id=f"m{self._count}", dst_node_id=node, ttl=2 * timeout + 60)
            messages.append(SimpleNamespace(metadata=metadata))
            client = node - 1
            self.given.append((self.now, client))
            reply = SimpleNamespace(
                metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=metadata.message_id),
                has_error=lambda: False,
                has_content=lambda: True,
                content=codec.encode(self.answer(kind, order)),
            )
            heapq.heappush(self.later, (self.now + self.seconds[client], client, metadata.message_id, reply))
        return messages

    def answer(self, kind, order):
        moved = np.float32(np.nan if order.client in self.junk else order.client + 1)
        tensors = {"x": order.tensors["x"] + moved}
        return ClientUpdate(**order.answered, examples=1, steps=1, loss=0.0, seconds=0.0, tensors=tensors)

    def replies(self, messages, seconds):
        waiting, until = {message.metadata.message_id for message in messages}, self.now + seconds
        while True:
            story = min(self.stories, default=(NEVER, None), key=lambda story: story[0])
            coming = [each for each in self.later if each[2] in waiting]
            came = min(coming, default=(NEVER, 0, "", None))
            moment = min(story[0], came[0], until)
            if moment >= self.end:
                raise Killed
            self.now = max(self.now, moment)
            if story[0] <= min(came[0], until):
                self.stories.remove(story)
                story[1](self)
            elif came[0] <= until:
                self.later.remove(came)
                yield came[3]
            else:
                return


class Run:
    """An asynchronous run on sites, client k of which moves its only number by k + 1."""

    def __init__(self, folder, sites=None, rounds=3, restored=None, federation=None, **settings):
        folder.mkdir(exist_ok=True)
        raw = {
            "method": "finetune",
            "federation": {
                "mode": "async",
                "clients": len(SECONDS),
                "clients_per_round": 2,
                "rounds": rounds,
                "timeout": 100.0,
                **(federation or {}),
            },
            "asynchronous": {"a": 1.0, **settings},
        }
        self.config, self.folder, self.sites = configuration.parse(raw), RunDir(folder), sites or Sites()
        self.state, self.progress = restored or (
            ServerState(subspaces={"0": {"x": np.zeros(1, np.float32)}}),
            Progress(timeline=Timeline()),
        )
        self.events, self.method = [], Finetune(self.config)
        fedopt = SimpleNamespace(
            broadcast=lambda t, memory: {}, extra_shapes=lambda trained: {}, reject_reason=lambda tensors: None
        )
        parts = {"config": self.config, "stream": Stream(), "state": self.state, "progress": self.progress}
        time = RealTime(self.progress.timeline, lambda: self.sites.now)
        rule = RULES[self.config.asynchronous.rule](self.config.asynchronous)
        self.spill = LateSpill(self.folder, rule, self.progress.timeline.flights)
        self.spill.tidy(self.progress.stage, self.progress.round)
        self.collector = LiveCollector(
            **parts,
            run=self.folder,
            orders=Orders(self.config, Stream(), self.method, fedopt),
            courier=self.sites,
            handshake=self.sites,
            assigner=SimpleNamespace(is_new=lambda slot: False, assign=self.assign),
            journal=SimpleNamespace(
                timed=lambda name: nullcontext(),
                round_event=lambda kind, **values: self.events.append((kind, values)),
                show=lambda kind, **values: None,
            ),
            stop=None,
            validator=Validator.of(self.config, False, []),
            spill=self.spill,
            dispatcher=Places(**parts, clock=time),
            time=time,
        )

    def assign(self, slots):
        self.method.assign(self.state, [slot.pair for slot in slots], {}, None)

    def round(self) -> tuple[list[int], list[int]]:
        """One server update with its checkpoint; clients in the order of their updates, and their staleness."""
        gathered = self.collector.round()
        updates = [update.tensors["x"] for update in self.spill]
        self.state.subspaces["0"] = {"x": np.mean(updates, axis=0, dtype=np.float64).astype(np.float32)}
        self.state.turns["0"] = self.state.turns.get("0", 0) + 1
        self.progress.round += 1
        checkpoint.save(self.folder, self.state, self.progress)
        self.spill.clear()
        clients = [slot.client for slot in gathered.slots]
        return clients, [gathered.staleness[client] for client in clients]

    def next_stage(self) -> None:
        self.progress.stage, self.progress.round = self.progress.stage + 1, 0

    def resumed(self, sites, **settings):
        """The same run in a new process, from its last checkpoint."""
        return Run(self.folder.path, sites, restored=checkpoint.load(self.folder), **settings)

    def said(self, *kinds: str) -> list:
        return [(kind, values.get("client", values.get("clients"))) for kind, values in self.events if kind in kinds]

    @property
    def timeline(self) -> Timeline:
        return self.progress.timeline

    @property
    def x(self) -> float:
        return float(self.state.subspaces["0"]["x"][0])
