"""The events of an asynchronous run: who is given an order when, and whose update comes next."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from fcit import seeding
from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import RunError
from fcit.federation.devices import DAY
from fcit.federation.messages import TrainOrder
from fcit.federation.sampling import suitable
from fcit.methods.base import ServerState
from server.checkpoint import Progress
from server.clock import Clock
from server.orders import Orders
from server.participants import Slot, slot_of
from server.timeline import Done, Flight, Timeline


@dataclass(kw_only=True)
class Dispatcher:
    """Keeps ``concurrency`` clients at work, on the simulated clock.

    When an update comes, its client's place goes to another one at the same moment, drawn from (seed, stage, number of
    the order) among those that can be reached, have no order and no update in the buffer. Nothing here depends on what
    training comes to: orders say how long they take. So the orders given between two server updates can be trained
    together, on any engine, and the events are the same.

    Attributes:
        assign: gives slots their subspaces (:meth:`server.assigner.Assigner.assign`).
    """

    config: RunConfig
    stream: Stream
    state: ServerState
    progress: Progress
    orders: Orders
    clock: Clock
    assign: Callable[[list[Slot]], None]
    _queue: list[tuple[tuple[float, int], str]] = field(default_factory=list, init=False)  # when, and name
    _busy: set[int] = field(default_factory=set, init=False)  # clients with an order

    def __post_init__(self) -> None:
        for flight in self.timeline.flights.values():
            self._began(flight)

    def _began(self, flight: Flight) -> None:
        heapq.heappush(self._queue, (flight.when, flight.name))
        self._busy.add(flight.order.client)

    @property
    def timeline(self) -> Timeline:
        """The simulated time of the run."""
        return self.clock.timeline

    @property
    def concurrency(self) -> int:
        """Clients that are at work at a time."""
        return self.config.asynchronous.concurrency or self.config.federation.clients_per_round

    def fly(self, waiting: Collection[int]) -> Iterator[tuple[Flight, TrainOrder]]:
        """Give orders at this moment until ``concurrency`` clients are at work, or no other can be reached.

        Args:
            waiting: clients whose updates are in the buffer.
        """
        timeline, stage = self.timeline, self.progress.stage
        free = self.concurrency - len(timeline.flights)
        if free <= 0:
            return
        rng = seeding.generator(self.config.seed, "order", stage, timeline.ordered)

        def suits(client: int) -> bool:
            return client not in self._busy and client not in waiting and self.clock.reachable(client)

        clients = suitable(rng, self.config.federation.clients, free, suits)
        tasks_of = self.stream.slots(stage)
        slots = [
            slot_of(self.config.seed, stage, client, tasks_of[(timeline.ordered + place) % len(tasks_of)])
            for place, client in enumerate(clients)
        ]
        self.assign(slots)
        for slot in slots:
            number, timeline.ordered = timeline.ordered, timeline.ordered + 1
            if slot.pair in self.state.assigned:  # a shard that got no subspace is left out
                order = self.orders.train(self.state, self.progress, slot)
                yield self._flight(f"{stage}-{number}", order), order

    def _flight(self, name: str, order: TrainOrder) -> Flight:
        now, trip = self.timeline.now, self.clock.trip(self.state, order)
        turns = self.state.turns.get(order.subspace, 0)
        flight = Flight(name, Done.of(order), now, now + trip.seconds, trip.down, trip.up, turns)
        self.timeline.flights[name] = flight
        self._began(flight)
        return flight

    def land(self) -> Flight:
        """Let time pass until the next update comes, by (time, client)."""
        timeline = self.timeline
        _, name = heapq.heappop(self._queue)
        flight = timeline.flights.pop(name)
        self._busy.discard(flight.order.client)
        timeline.now = max(timeline.now, flight.arrival)
        timeline.busy += flight.arrival - flight.begun
        return flight

    def drop(self) -> list[Flight]:
        """Let no one be at work any longer; returns what was under way. Clients were at work for it until now."""
        flights = list(self.timeline.flights.values())
        self.timeline.busy += sum(self.timeline.now - flight.begun for flight in flights)
        self.timeline.dropped += len(flights)
        self.timeline.flights.clear()
        self.timeline.ordered = 0
        self._queue.clear()
        self._busy.clear()
        return flights

    def wait(self, since: float, waiting: Collection[int]) -> None:
        """No one is at work: let time pass until someone can be given an order.

        Args:
            since: when one was last at work.

        Raises:
            RunError: that is a day ago.
        """
        if self.timeline.now - since > DAY:
            raise RunError(
                f"stage {self.progress.stage + 1}, round {self.progress.round + 1}: for a day of simulated time no "
                "client could be given an order (devices.profile, federation.max_subspaces); events.jsonl says more"
            )
        self.clock.wait(client for client in range(self.config.federation.clients) if client not in waiting)
