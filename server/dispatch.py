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
from fcit.methods.base import Pair, ServerState
from server.checkpoint import Progress
from server.clock import Clock
from server.orders import Orders
from server.participants import Slot, slot_of
from server.timeline import Done, Flight, Timekeeper, Timeline


@dataclass(kw_only=True)
class Places:
    """The places of clients at work, ``concurrency`` of them: who is given the next order, and what is under way.

    Who it is is drawn from (seed, stage, number of the order).
    """

    config: RunConfig
    stream: Stream
    state: ServerState
    progress: Progress
    clock: Timekeeper

    @property
    def timeline(self) -> Timeline:
        """The time of the run."""
        return self.clock.timeline

    @property
    def concurrency(self) -> int:
        """Clients that are at work at a time."""
        return self.config.asynchronous.concurrency or self.config.federation.clients_per_round

    def draw(self, free: int, suits: Callable[[int], bool]) -> list[tuple[str, Slot]]:
        """Names and participations of the next orders, as many as places are free if so many clients suit."""
        rng = seeding.generator(self.config.seed, "order", self.progress.stage, self.timeline.ordered)
        return [self.named(client) for client in suitable(rng, self.config.federation.clients, free, suits)]

    def named(self, client: int, shard: str = "") -> tuple[str, Slot]:
        """Name and participation of the next order, if this client is given it.

        Clients go through the slots of the stage in turn.

        Args:
            shard: of the participation, where it has to be a certain one of the client's.
        """
        stage, number, tasks = self.progress.stage, self.timeline.ordered, self.stream.slots(self.progress.stage)
        self.timeline.ordered += 1
        slot = slot_of(self.config.seed, stage, client, tasks[number % len(tasks)])
        others = (slot_of(self.config.seed, stage, client, each) for each in tasks) if shard else ()
        return f"{stage}-{number}", next((other for other in others if other.shard == shard), slot)

    def begin(self, name: str, order: TrainOrder, seconds: float, down: int = 0, up: int = 0) -> Flight:
        """Note that an order was given now, whose update comes after so many seconds."""
        now, turns = self.clock.now, self.state.turns.get(order.subspace, 0)
        flight = Flight(name, Done.of(order), now, now + seconds, down, up, turns)
        self.timeline.flights[name] = flight
        return flight

    def drop(self) -> list[Flight]:
        """Let no one be at work any longer; returns what was under way. Clients were at work for it until now."""
        flights, now = list(self.timeline.flights.values()), self.clock.now
        self.timeline.busy += sum(now - flight.begun for flight in flights)
        self.timeline.dropped += len(flights)
        self.timeline.flights.clear()
        self.timeline.ordered = 0
        return flights


@dataclass(kw_only=True)
class Dispatcher(Places):
    """Keeps ``concurrency`` clients at work, on the simulated clock.

    When an update comes, its client's place goes to another one at the same moment, among those that can be reached,
    have no order and no update in the buffer. Nothing here depends on what training comes to: orders say how long they
    take. So the orders given between two server updates can be trained together, on any engine, and the events are the
    same.

    Attributes:
        assign: gives slots their subspaces (:meth:`server.assigner.Assigner.assign`).
    """

    clock: Clock
    orders: Orders
    assign: Callable[[list[Slot]], None]
    _queue: list[tuple[tuple[float, int], str]] = field(default_factory=list, init=False)  # when, and name
    _busy: set[int] = field(default_factory=set, init=False)  # clients with an order

    def __post_init__(self) -> None:
        for flight in self.timeline.flights.values():
            self._began(flight)

    def _began(self, flight: Flight) -> None:
        heapq.heappush(self._queue, (flight.when, flight.name))
        self._busy.add(flight.order.client)

    def fly(self, waiting: Collection[int]) -> Iterator[tuple[Flight, TrainOrder]]:
        """Give orders at this moment until ``concurrency`` clients are at work, or no other can be reached.

        A shard that gets no subspace is left out. Its place stays empty, unless no one would be at work: then others
        are drawn, as no update would come for which time could pass.

        Args:
            waiting: clients whose updates are in the buffer.
        """
        refused = set[Pair]()

        def suits(client: int) -> bool:
            idle = client not in self._busy and client not in waiting and self.clock.reachable(client)
            return idle and (not refused or bool(self._left(client, refused)))

        while (free := self.concurrency - len(self.timeline.flights)) > 0:
            drawn = [
                (name, self._left(slot.client, refused)[0] if slot.pair in refused else slot)
                for name, slot in self.draw(free, suits)
            ]
            self.assign([slot for _, slot in drawn])
            for name, slot in drawn:
                if slot.pair in self.state.assigned:
                    order = self.orders.train(self.state, self.progress, slot)
                    trip = self.clock.trip(self.state, order)
                    flight = self.begin(name, order, trip.seconds, trip.down, trip.up)
                    self._began(flight)
                    yield flight, order
            if self.timeline.flights or not drawn:
                return
            refused.update(slot.pair for _, slot in drawn)

    def _left(self, client: int, refused: set[Pair]) -> list[Slot]:
        """The participations of a client in this stage that were not refused."""
        stage = self.progress.stage
        slots = (slot_of(self.config.seed, stage, client, tasks) for tasks in self.stream.slots(stage))
        return [slot for slot in slots if slot.pair not in refused]

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
        """As :meth:`Places.drop`."""
        self._queue.clear()
        self._busy.clear()
        return super().drop()

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
