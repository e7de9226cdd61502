"""Before a participation trains for the first time: its client describes the shard, the method picks a subspace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import CodecError
from fcit.federation import codec
from fcit.federation.messages import DescribeOrder, Description
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.privacy import tokens
from server import descriptions
from server.checkpoint import Progress
from server.courier import Courier
from server.journal import Journal
from server.orders import Orders
from server.participants import Slot
from server.validation import short


@dataclass(kw_only=True)
class Assigner:
    """Gives the participations of a round their subspaces.

    Attributes:
        factory: makes new subspaces.
        identity_width: numbers in an identity feature of the clients' backbone.
    """

    config: RunConfig
    stream: Stream
    method: Method
    state: ServerState
    progress: Progress
    orders: Orders
    courier: Courier
    journal: Journal
    factory: Factory
    identity_width: int

    def assign(self, slots: list[Slot]) -> None:
        """Have new shards described and let the method give every slot its subspace, in ``state.assigned``.

        A shard whose description is rejected, or that would open one subspace too many, gets none and is left out.
        """
        new = [slot for slot in slots if self.is_new(slot)]
        self.settle(slots, self.courier.send("query.describe", self.questions(new), "describe") if new else ())

    def is_new(self, slot: Slot) -> bool:
        """Whether a shard has to be described before it gets its subspace."""
        return self.method.needs_stats and slot.pair not in self.state.assigned

    def questions(self, slots: list[Slot]) -> list[tuple[int, DescribeOrder]]:
        """``(node, order)`` for new shards that are to be described."""
        # Counted when asked for: one that is refused has left its site as well.
        asked = {f"{slot.client}/{slot.shard}" for slot in slots}
        self.progress.described = sorted({*self.progress.described, *asked})
        return [(self.courier.node(s.client), self.orders.describe(s, self.progress.stage)) for s in slots]

    def settle(self, slots: list[Slot], replies: Iterable[Message]) -> None:
        """:meth:`assign`, by the replies to the questions about new shards."""
        stats: dict[Pair, Stats] = {}
        if self.method.needs_stats:
            stats = self._described({slot.pair: slot for slot in slots if self.is_new(slot)}, replies)
            slots = [s for s in slots if s.pair in stats or s.pair in self.state.assigned]
        left_out = descriptions.assign(
            self.method,
            self.state,
            stats,
            [s.pair for s in slots],
            self.factory,
            self.config.federation,
            self.progress.openings,
        )
        for (client, _), reason in left_out.items():
            self.journal.round_event("openings", client=client, reason=reason)

    def _described(self, new: dict[Pair, Slot], replies: Iterable[Message]) -> dict[Pair, Stats]:
        """Statistics of new shards, without those that are rejected."""
        stats: dict[Pair, Stats] = {}
        for reply in replies:
            client, reject_reason, description = self._read(reply, new)
            if description is None or reject_reason is not None:
                self._failed(client, short(reject_reason or "empty"))
            elif (description.client, description.shard) not in stats:
                stats[description.client, description.shard] = Stats(description.tensors["total"], description.count)
        noise = tokens.multiplier(self.config.privacy) if self.config.privacy.tokens else None
        for pair, reason in descriptions.outliers(stats, self.method, self.progress.lengths, noise).items():
            self._failed(pair[0], reason)
            del stats[pair]
        self.progress.declared |= {f"{client}/{shard}": s.count for (client, shard), s in sorted(stats.items())}
        return stats

    def _failed(self, client: int | None, reason: str) -> None:
        self.journal.round_event("describe-failed", client=client, reason=reason)

    def _read(self, reply: Message, new: dict[Pair, Slot]) -> tuple[int | None, str | None, Description | None]:
        """The client, why its description is rejected, and the description."""
        client = self.courier.client(reply.metadata.src_node_id)
        if reply.has_error():
            return client, reply.error.reason, None
        try:
            description = codec.decode(reply.content, Description, reply=True)
        except CodecError as error:
            return client, str(error), None
        if reply.metadata.src_node_id != self.courier.node(description.client):
            return client, f"answered for client {description.client}", None
        slot = new.get((description.client, description.shard))
        if slot is None:
            return client, "was not asked", None
        most = descriptions.most_records(self.config, self.stream, slot.client, slot.tasks)
        return client, descriptions.reject_reason(description, self.identity_width, most), description
