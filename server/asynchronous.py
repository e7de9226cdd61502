"""Rounds that do not wait: a server update takes the updates that come next, late ones among them."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, field

from fcit.config.async_checks import buffer_of
from fcit.federation.messages import TrainOrder
from fcit.io.trees import Tensors
from fcit.methods.base import Pair
from server.collect import Collector
from server.dispatch import Places
from server.gather import Gathered
from server.late import LateSpill
from server.participants import Slot
from server.timeline import Flight


@dataclass
class Buffer:
    """One server update in the making.

    Attributes:
        arrived: orders whose updates have come, in that order.
        fresh: orders that were given since the server update before, by name.
        trained: names of those that were carried out; on the simulated clock.
        accepted: of the fresh ones, those whose updates were accepted.
        clients: those whose updates have come.
    """

    arrived: list[Flight] = field(default_factory=list)
    fresh: dict[str, TrainOrder] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    accepted: set[Pair] = field(default_factory=set)
    clients: set[int] = field(default_factory=set)

    def arrive(self, flight: Flight) -> None:
        """The update to an order has come."""
        self.arrived.append(flight)
        self.clients.add(flight.order.client)

    @property
    def usable(self) -> list[Flight]:
        """Those of them that were accepted, now or when they were trained."""
        return [f for f in self.arrived if (f.order.pair in self.accepted if f.name in self.fresh else f.update)]


@dataclass(kw_only=True)
class AsyncCollector(Collector):
    """Collects the updates of a server update, which is a round: as many as the buffer holds.

    Where they come from is what the two kinds differ in: from the simulated clock
    (:class:`server.simulated.SimulatedCollector`), or from sites, in real time (:class:`server.live.LiveCollector`).

    What is under way at the end of a stage is dropped and counted: the next stage has other tasks, and the method may
    have replaced the subspaces.
    """

    dispatcher: Places
    spill: LateSpill

    @property
    def size(self) -> int:
        """Updates of a server update."""
        return buffer_of(self.config)

    def round(self, drawn: list[int] | None = None, extra: bool = False, measure: bool = False) -> Gathered:
        """Have the round at hand trained; who takes part follows from who is free and what comes.

        Raises:
            RunError: too few updates, and no further attempt. StopRequested: asked to stop.
        """
        buffer, needed = Buffer(), min(self.config.federation.min_updates, self.size)
        for attempt in itertools.count():
            self._fill(buffer, attempt)
            if len(buffer.usable) >= needed:
                break
            self._repeat(len(buffer.usable), needed, attempt)
        staleness = {flight.order.client: self._join(flight, flight.name in buffer.fresh) for flight in buffer.usable}
        self._keep(buffer)
        if self._last:
            self._drop(buffer)
        slots = [Slot(f.order.client, f.order.shard, tuple(f.order.tasks)) for f in buffer.arrived]
        return Gathered(slots, {f.order.pair: f.order for f in buffer.usable}, staleness=staleness)

    @property
    def _last(self) -> bool:
        """Whether the round at hand is the last one of its stage."""
        return self.progress.round + 1 == self.orders.method.rounds(self.progress.stage)

    @abstractmethod
    def _fill(self, buffer: Buffer, attempt: int) -> None:
        """Let clients work until the buffer has as many updates as it lacks, or no more come."""

    def _keep(self, buffer: Buffer) -> None:
        """Keep what has come before its time."""

    def _join(self, flight: Flight, fresh: bool) -> int:
        """Let an update take part in the round; returns the number of server updates since its order was given."""
        order, shared = flight.order, self.state.shared
        behind = self.progress.round - order.round
        turns = self.state.turns.get(order.subspace, 0) - flight.turns
        now: Tensors = {**self.state.subspaces[order.subspace], **shared}

        def tau(name: str) -> int:
            return behind if name in shared else turns

        if fresh:
            self.spill.join(order.pair, now, tau)
        elif flight.update is not None:
            self.spill.join_late(flight.name, flight.update, now, tau)
        counts = self.dispatcher.timeline.staleness
        counts[str(behind)] = counts.get(str(behind), 0) + 1
        return behind

    def _drop(self, buffer: Buffer) -> list[Flight]:
        """Drop what is under way at the end of a stage; returns it."""
        flights = self.dispatcher.drop()
        if flights:
            self.journal.round_event("dropped", clients=sorted(flight.order.client for flight in flights))
        return flights
