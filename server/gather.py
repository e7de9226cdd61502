"""Asking for the updates of a round until enough are there, however they are asked for."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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
from server.courier import NOBODY, Courier
from server.handshake import Handshake
from server.journal import Journal
from server.orders import Orders
from server.participants import Slot
from server.stop import Stop
from server.validation import short

#: How a client says that it does not have the memory that its order names: a site's code, or the error's name.
_LOST = re.compile(r"\b(memory-lost|MemoryLost)\b")


@dataclass(kw_only=True)
class Gathering(ABC):
    """Asks the participants of a round; :meth:`gather` is the way in."""

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

    #: Whom a run that is resumed asks in a round that was not over.
    asked_again: ClassVar[str] = "only those whose update is lacking"

    def gather(self, sampled: list[Slot], measure: bool = False) -> dict[Pair, TrainOrder]:
        """Ask for updates until enough are accepted; returns the orders whose updates were.

        With ``measure`` clients measure instead of training, see :meth:`fcit.methods.base.Method.measure`.

        A repetition asks only those whose update is lacking. The others would train the same order on the
        same data again: the same bits, hours later.

        Raises:
            RunError: too few updates, and no further attempt.
            StopRequested: asked to stop; accepted updates stay on the disk.
        """
        needed = min(self.config.federation.min_updates, len(sampled))
        accepted: dict[Pair, TrainOrder] = {}
        for attempt in itertools.count():
            self.handshake.update()
            present = self._present([slot for slot in sampled if slot.pair not in accepted])
            with self.journal.timed("describe"):
                self.assigner.assign([slot for slot in present if attempt == 0 or slot.pair not in self.state.assigned])
            # Made anew for a repetition: a client that has lost what it was sent earlier gets it again.
            orders = {
                slot.pair: self.orders.train(self.state, self.progress, slot, measure)
                for slot in sampled
                if slot.pair in self.state.assigned and slot.pair not in accepted
            }
            if attempt == 0:
                accepted |= self._adopt(orders)
            pairs = [slot.pair for slot in present if slot.pair in orders and slot.pair not in accepted]
            accepted |= self._ask({pair: orders[pair] for pair in pairs}, attempt)
            lacking = [slot for slot in sampled if slot.pair not in accepted]
            if len(accepted) >= needed or self._exhausted(lacking, len(accepted), needed):
                break
            self._repeat(len(accepted), needed, attempt)
        return accepted

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
        if not reply.has_error() or not _LOST.search(reply.error.reason.partition("\n")[0]):
            return
        node = reply.metadata.src_node_id
        for client in {client for client, _ in waiting if self.courier.node(client) == node}:
            version = self.progress.memories.pop(str(client), "")
            groups = self.progress.constants.pop(str(client), [])
            self.journal.round_event("memory-lost", client=client, version=version, constants=groups)

    def _declared(self, order: TrainOrder) -> int:
        """How many records a client can have been trained on by an order."""
        if (extra := self.orders.method.extra(order.stage, order.round)) is not None:
            return extra.most
        declared = order.budget or self.progress.declared.get(f"{order.client}/{order.shard}")
        if declared is None:
            declared = descriptions.most_records(self.config, self.stream, order.client, order.tasks)
        return declared
