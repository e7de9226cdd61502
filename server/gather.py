"""Asking for the updates of a round until enough are there, however they are asked for."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from flwr.app import Message

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import RunError
from fcit.federation.messages import TrainOrder
from fcit.methods.base import Pair, ServerState
from fcit.runs.folder import RunDir
from server import descriptions
from server.assigner import Assigner
from server.checkpoint import Progress
from server.clock import Clock
from server.courier import NOBODY, Courier
from server.handshake import Handshake
from server.journal import Journal
from server.orders import Orders
from server.participants import Slot, slots_of_round
from server.stop import Stop
from server.timeline import Done, Timekeeper
from server.validation import short

#: How a client says that it does not have the memory that its order names: a site's code, or the error's name.
_LOST = re.compile(r"\b(memory-lost|MemoryLost)\b")


def lost_memory(reply: Message) -> bool:
    """Whether a reply is that its client does not have what its order expects it to keep."""
    return reply.has_error() and bool(_LOST.search(reply.error.reason.partition("\n")[0]))


@dataclass(frozen=True)
class Gathered:
    """What a round has.

    Attributes:
        slots: its participations, without those that came too late.
        accepted: orders whose updates were accepted.
        late: clients whose updates came after those that count.
        staleness: by client, server updates since its order was given; of asynchronous runs.
    """

    slots: list[Slot]
    accepted: dict[Pair, Done]
    late: list[int] = field(default_factory=list)
    staleness: dict[int, int] = field(default_factory=dict)

    def remarks(self, clock: Timekeeper | None) -> dict[str, Any]:
        """What the event of a round says of time: the server's now, ``simulated`` or ``elapsed`` (real)."""
        if clock is None:
            return {}
        behind = {"staleness": [self.staleness.get(slot.client, 0) for slot in self.slots]} if self.staleness else {}
        return {clock.word: round(clock.now, 3), **({"late": self.late} if self.late else {}), **behind}


@dataclass(kw_only=True)
class Gathering(ABC):
    """Asks the participants of a round; :meth:`round` is the way in.

    Attributes:
        clock: of simulated time; None: there is none.
    """

    config: RunConfig
    stream: Stream
    run: RunDir
    state: ServerState
    progress: Progress
    orders: Orders
    courier: Courier
    handshake: Handshake
    assigner: Assigner
    journal: Journal
    stop: Stop
    clock: Clock | None = None

    #: Whom a run that is resumed asks in a round that was not over.
    asked_again: ClassVar[str] = "only those whose update is lacking"

    def round(self, drawn: list[int] | None = None, extra: bool = False, measure: bool = False) -> Gathered:
        """Have the round at hand trained, or the stage measured.

        Args:
            drawn: as for :func:`server.participants.slots_of_round`.
            extra: as there.
            measure: as for :meth:`gather`.

        Raises:
            RunError, StopRequested: as :meth:`gather`.
        """
        stage, round_ = self.progress.stage, self.progress.round
        if self.clock is not None and drawn is None:
            drawn = self.clock.drawn(stage, round_)
        method = self.orders.method
        return self.gather(slots_of_round(self.config, self.stream, method, stage, round_, drawn, extra), measure)

    def gather(self, sampled: list[Slot], measure: bool = False) -> Gathered:
        """Ask for updates until enough are accepted.

        With ``measure`` clients measure instead of training, see :meth:`fcit.methods.base.Method.measure`.

        A repetition asks only those whose update is lacking. The others would train the same order on the
        same data again: the same bits, hours later.

        Raises:
            RunError: too few updates, and no further attempt.
            StopRequested: asked to stop; accepted updates stay on the disk.
        """
        needed = min(self.config.federation.min_updates, len(sampled))
        accepted: dict[Pair, TrainOrder] = {}
        late: list[int] = []
        settled = partial(self.orders.method.settled, self.state)
        for attempt in itertools.count():
            self.handshake.update()
            present = self._present([slot for slot in sampled if slot.pair not in accepted])
            with self.journal.timed("describe"):
                self.assigner.assign([slot for slot in present if attempt == 0 or not settled(slot.pair)])
            # Made anew for a repetition: a client that has lost what it was sent earlier gets it again.
            orders = {
                slot.pair: self.orders.train(self.state, self.progress, slot, measure)
                for slot in sampled
                if settled(slot.pair) and slot.pair not in accepted
            }
            if attempt == 0:
                late = self._leave_late(orders)
                sampled = [slot for slot in sampled if slot.client not in late]
                accepted |= self._adopt(orders)
            pairs = [slot.pair for slot in present if slot.pair in orders and slot.pair not in accepted]
            if attempt > 0 and self.clock is not None:
                self.clock.spend(self.clock.trip(self.state, orders[pair]) for pair in pairs)
            accepted |= self._ask({pair: orders[pair] for pair in pairs}, attempt)
            lacking = [slot for slot in sampled if slot.pair not in accepted]
            if len(accepted) >= needed or self._exhausted(lacking, len(accepted), needed):
                break
            self._repeat(len(accepted), needed, attempt)
        return Gathered(sampled, {pair: Done.of(order) for pair, order in accepted.items()}, late)

    def _leave_late(self, orders: dict[Pair, TrainOrder]) -> list[int]:
        """Let the simulated time of a round pass; orders that are over too late are taken out, their clients returned.

        What these train is not computed: nothing comes of it. What it costs is charged.
        """
        if self.clock is None:
            return []
        trips = {pair: self.clock.trip(self.state, order) for pair, order in orders.items()}
        first = self.clock.first(trips)
        self.clock.spend(trips[pair] for pair in first)
        late = [pair for pair in orders if pair not in first]
        for pair in late:
            del orders[pair]
            self.charge(trips[pair].down, trips[pair].up)
            self.clock.timeline.busy += trips[pair].seconds
        self.clock.timeline.late += len(late)
        return [client for client, _ in late]

    def charge(self, down: int, up: int) -> None:
        """Count the tensors of an exchange that is not carried out, as nothing comes of it."""
        traffic = self.progress.traffic
        traffic["down"] += down
        traffic["up"] += up
        traffic["orders"] += 1

    def _present(self, slots: list[Slot]) -> list[Slot]:
        """The participations whose client is connected."""
        for slot in slots:
            if self.courier.node(slot.client) == NOBODY:
                self.journal.round_event("absent", client=slot.client)
        return [slot for slot in slots if self.courier.node(slot.client) != NOBODY]

    def _exhausted(self, lacking: list[Slot], accepted: int, needed: int) -> bool:
        """Whether the round is over with what it has, as no further attempt can add anything.

        Args:
            lacking: participations without an accepted update.
        """
        return False

    def _repeat(self, accepted: int, needed: int, attempt: int) -> None:
        """Too few updates: go on to another attempt, perhaps after a pause.

        Raises:
            RunError: there is none.
        """
        federation = self.config.federation
        if not federation.again(attempt):
            raise RunError(
                f"stage {self.progress.stage + 1}, round {self.progress.round + 1}: {accepted} usable updates, "
                f"{needed} needed (federation.min_updates), {attempt + 1} attempts (federation.on_too_few: "
                f"{federation.on_too_few}); reasons are in {self.run.events}; `fcit resume {self.run.path}` tries "
                f"again and asks {self.asked_again}"
            )
        self.journal.round_event("retry", accepted=accepted, needed=needed)
        if federation.on_too_few == "wait":
            self.stop.pause(federation.pause)

    # ------------------------------------------------------------------ asking

    @abstractmethod
    def _adopt(self, orders: dict[Pair, TrainOrder]) -> dict[Pair, TrainOrder]:
        """Take over what an earlier process of this run accepted in this round before it ended."""

    @abstractmethod
    def _ask(self, orders: dict[Pair, TrainOrder], attempt: int) -> dict[Pair, TrainOrder]:
        """Send orders, keep what is accepted of the answers; returns the orders of these."""

    def _reject(self, reason: str, client: int | None) -> None:
        self.progress.traffic["rejected"] += 1
        self.journal.round_event("rejected", client=client, reason=short(reason))

    def _note_lost_memory(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> None:
        """Forget what a client was assumed to remember, if its reply is that this is lost: its next order starts
        afresh."""
        if not lost_memory(reply):
            return
        node = reply.metadata.src_node_id
        for client in {client for client, _ in waiting if self.courier.node(client) == node}:
            self.journal.round_event("memory-lost", client=client, **self.progress.forget(client))

    def _declared(self, order: TrainOrder) -> int:
        """How many records a client can have been trained on by an order."""
        if (extra := self.orders.method.extra(order.stage, order.round)) is not None:
            return extra.most
        declared = order.budget or self.progress.declared.get(f"{order.client}/{order.shard}")
        if declared is None:
            declared = descriptions.most_records(self.config, self.stream, order.client, order.tasks)
        return declared
