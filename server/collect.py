"""The updates of a round: clients are sent orders, their updates are checked, accepted ones wait on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Message

from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.methods.base import Pair
from server.gather import Gathering
from server.spill import Spill
from server.validation import Validator


@dataclass(kw_only=True)
class Collector(Gathering):
    """Collects the updates of a round.

    Accepted updates are in ``spill`` afterwards, their norms with ``validator``.
    """

    validator: Validator
    spill: Spill

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
            self.courier.count(order, self.spill.received(order))
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
                update = self._accepted(reply, waiting)
                if update is None:
                    continue
                pair = (update.client, update.shard)
                self.spill.put(orders[pair], update, codec.size(reply.content))
                self._accept(update)
                accepted[pair] = orders[pair]
        for client, _ in waiting:
            self.journal.round_event("missing", client=client)
        return accepted

    def _accepted(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> ClientUpdate | None:
        """The update in a reply if it is accepted; an event says why it is not.

        Args:
            waiting: orders that can be answered; the one that is answered is taken out.
        """
        self._note_lost_memory(reply, waiting)
        reject_reason, update = self._read(reply, waiting)
        if reject_reason is None and update is not None:
            return update
        client = self.courier.client(reply.metadata.src_node_id) if update is None else update.client
        self._reject(reject_reason or "empty", client)
        return None

    def _accept(self, update: ClientUpdate) -> None:
        # A client that was never described is held to the size it first reported.
        self.progress.declared.setdefault(f"{update.client}/{update.shard}", update.examples)
        self.journal.show("client", client=update.client, loss=None if self.config.privacy.records else update.loss)

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
        if self.orders.thin is not None and not order.measure:
            try:
                update = self.orders.thin.restored(order, update)
            except CodecError as error:
                return str(error), update
        return self._reject_reason(order, update), update

    def _reject_reason(self, order: TrainOrder, update: ClientUpdate) -> str | None:
        """Why an update to an order is rejected, or None."""
        shapes = self.orders.extra_shapes(self.state, order)
        return self.validator.reject_reason(order, update, self._declared(order), shapes, self.orders.reject_reason)
