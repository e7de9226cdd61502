"""Rounds that do not wait: a server update takes the updates that come next, late ones among them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from fcit.config.async_checks import buffer_of
from fcit.federation.messages import TrainOrder
from fcit.io.trees import Tensors
from fcit.methods.base import Pair
from server.collect import Collector
from server.dispatch import Dispatcher
from server.gather import Gathered
from server.late import LateSpill
from server.participants import Slot
from server.timeline import Flight


@dataclass
class _Buffer:
    """One server update in the making.

    Attributes:
        arrived: orders whose updates have come, in that order.
        fresh: orders that were given since the server update before, by name.
        trained: names of those that were carried out.
        accepted: of these, those whose updates were accepted.
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

    The server's tensors change with a server update only. So all orders that are given between two of them are carried
    out together before the second one, those whose updates come later as well: these wait on the disk. Memory holds
    no update at any time; the disk holds those of concurrency and buffer.

    What is under way at the end of a stage is dropped and counted: the next stage has other tasks, and the method may
    have replaced the subspaces. In a stage's last round what cannot come in time is not trained.
    """

    dispatcher: Dispatcher
    spill: LateSpill

    @property
    def size(self) -> int:
        """Updates of a server update."""
        return buffer_of(self.config)

    def round(self, drawn: list[int] | None = None, extra: bool = False, measure: bool = False) -> Gathered:
        """Have the round at hand trained; who takes part follows from the clock.

        Raises:
            RunError: too few updates, and no further attempt. StopRequested: asked to stop.
        """
        buffer, needed = _Buffer(), min(self.config.federation.min_updates, self.size)
        for attempt in itertools.count():
            self._fill(buffer)
            self._train(buffer, attempt)
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

    def _fill(self, buffer: _Buffer) -> None:
        """Let time pass until the buffer has as many updates as it lacks."""
        timeline, since = self.dispatcher.timeline, self.dispatcher.timeline.now
        for _ in range(self.size - len(buffer.usable)):
            while True:
                with self.journal.timed("describe"):
                    buffer.fresh |= {flight.name: order for flight, order in self.dispatcher.fly(buffer.clients)}
                if timeline.flights:
                    break
                self.dispatcher.wait(since, buffer.clients)
            buffer.arrive(self.dispatcher.land())
            since = timeline.now

    def _train(self, buffer: _Buffer, attempt: int) -> None:
        """Have the orders carried out that were given since the server update before."""
        come = {flight.name for flight in buffer.arrived}
        names = [n for n in buffer.fresh if n not in buffer.trained and (n in come or not self._last)]
        buffer.trained.update(names)
        orders = {(order.client, order.shard): order for order in (buffer.fresh[name] for name in names)}
        adopted = self._adopt(orders)
        asked = self._ask({pair: order for pair, order in orders.items() if pair not in adopted}, attempt)
        buffer.accepted |= adopted.keys() | asked.keys()

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

    def _keep(self, buffer: _Buffer) -> None:
        """Keep what was trained and comes later."""
        for flight in self.dispatcher.timeline.flights.values():
            if flight.name in buffer.trained and flight.order.pair in buffer.accepted:
                flight.update = self.spill.keep(flight.name, buffer.fresh[flight.name])

    def _drop(self, buffer: _Buffer) -> None:
        """Drop what is under way at the end of a stage."""
        flights = self.dispatcher.drop()
        for flight in flights:
            if flight.name in buffer.fresh and flight.name not in buffer.trained:
                self.charge(flight.down, 0)
        if flights:
            self.journal.round_event("dropped", clients=sorted(flight.order.client for flight in flights))
        self.spill.drop()
