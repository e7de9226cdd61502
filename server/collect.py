"""The updates of a round: clients are sent orders, their updates are checked, accepted ones wait on the disk."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from flwr.app import Message

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, TrainOrder
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
from server.spill import Spill
from server.stop import Stop
from server.validation import Validator, short

#: How a client says that it does not have the memory that its order names: a site's code, or the error's name.
_LOST = re.compile(r"\b(memory-lost|MemoryLost)\b")


@dataclass(kw_only=True)
class Collector:
    """Collects the updates of a round; :meth:`gather` is the way in.

    Accepted updates are in ``spill`` afterwards, their norms with ``validator``.
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
    validator: Validator
    spill: Spill
    journal: Journal
    stop: Stop

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
            if len(accepted) >= needed:
                break
            self._repeat(len(accepted), needed, attempt)
        return accepted

    def _present(self, slots: list[Slot]) -> list[Slot]:
        """The participations whose client is connected."""
        for slot in slots:
            if self.courier.node(slot.client) == NOBODY:
                self.journal.round_event("absent", client=slot.client)
        return [slot for slot in slots if self.courier.node(slot.client) != NOBODY]

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
                "again and asks only those whose update is lacking"
            )
        self.journal.round_event("retry", accepted=accepted, needed=needed)
        if federation.on_too_few == "wait":
            self.stop.pause(federation.pause)

    # ------------------------------------------------------------------ asking

    def _adopt(self, orders: dict[Pair, TrainOrder]) -> dict[Pair, TrainOrder]:
        """Take over updates that an earlier process of this run accepted in this round before it ended."""
        adopted = {}
        for pair, order in orders.items():
            try:
                update = self.spill.find(order)
            except RunError as error:
                self.journal.round_event("spill-damaged", client=pair[0], reason=str(error))
                continue
            if update is None:
                continue
            reject_reason = self._reject_reason(order, update)
            if reject_reason is not None:
                self._reject(reject_reason, pair[0])
                continue
            self.courier.count(order, update)
            self.spill.take(update)
            self._accept(update)
            adopted[pair] = order
        if adopted:
            self.journal.round_event("reused", clients=[client for client, _ in adopted])
        return adopted

    def _ask(self, orders: dict[Pair, TrainOrder], attempt: int) -> dict[Pair, TrainOrder]:
        """Send orders, check the updates, keep those that are accepted; returns the orders of these."""
        accepted: dict[Pair, TrainOrder] = {}
        waiting = dict(orders)
        messages = [(self.courier.node(order.client), order) for order in orders.values()]
        measure = any(order.measure for order in orders.values())
        with self.journal.timed("measuring" if measure else "training"):
            group = f"{self.progress.stage}.{self.progress.round}.{attempt}{'.measure' if measure else ''}"
            for reply in self.courier.send("train", messages, group):
                self._note_lost_memory(reply, waiting)
                reject_reason, update = self._read(reply, waiting)
                if reject_reason is not None or update is None:
                    client = self.courier.client(reply.metadata.src_node_id) if update is None else update.client
                    self._reject(reject_reason or "empty", client)
                    continue
                pair = (update.client, update.shard)
                self.spill.put(orders[pair], update)
                self._accept(update)
                accepted[pair] = orders[pair]
        for client, _ in waiting:
            self.journal.round_event("missing", client=client)
        return accepted

    def _accept(self, update: ClientUpdate) -> None:
        # A client that was never described is held to the size it first reported.
        self.progress.declared.setdefault(f"{update.client}/{update.shard}", update.examples)
        self.journal.show("client", client=update.client, loss=update.loss)

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

    # ------------------------------------------------------------------ judging

    def _read(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> tuple[str | None, ClientUpdate | None]:
        """Why a reply is rejected, and the update it holds; its order is not waited for any longer."""
        if reply.has_error():
            # The node's order is answered, if badly; it is not missing.
            node = reply.metadata.src_node_id
            pair = next((p for p in waiting if self.courier.node(p[0]) == node), None)
            if pair is None:
                return reply.error.reason, None
            waiting.pop(pair)
            # Perhaps it lost what it had been sent; next time it gets everything again.
            self.progress.constants.pop(str(pair[0]), None)
            return f"client {pair[0]}: {reply.error.reason}", None
        try:
            update = codec.decode(reply.content, ClientUpdate, reply=True)
        except CodecError as error:
            return str(error), None
        if reply.metadata.src_node_id != self.courier.node(update.client):
            return f"another node answered for client {update.client}", None
        order = waiting.pop((update.client, update.shard), None)
        if order is None:
            return f"client {update.client} was not asked for this", update
        return self._reject_reason(order, update), update

    def _reject_reason(self, order: TrainOrder, update: ClientUpdate) -> str | None:
        """Why an update to an order is rejected, or None."""
        declared = order.budget or self.progress.declared.get(f"{order.client}/{order.shard}")
        if declared is None:
            declared = descriptions.most_records(self.config, self.stream, order.client, order.tasks)
        shapes = self.orders.extra_shapes(self.state, order)
        return self.validator.reject_reason(order, update, declared, shapes, self.orders.reject_reason)
