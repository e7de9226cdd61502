"""The simulated clock: which clients can be reached, how long an order takes, who is first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from fcit import seeding
from fcit.config import RunConfig
from fcit.config.kinds import epochs_of
from fcit.data.stream import Stream
from fcit.errors import ConfigError, RunError
from fcit.federation.devices import DAY, Fleet
from fcit.federation.formats import BESIDE, BYTES
from fcit.federation.messages import TrainOrder, is_learnt
from fcit.federation.sampling import sample, seeded, suitable
from fcit.methods.base import Pair, ServerState
from server import descriptions
from server.orders import Orders
from server.timeline import Timekeeper, Timeline


class Trip(NamedTuple):
    """An order on the clock: bytes to the client and back, and seconds from the first byte to the last."""

    down: int
    up: int
    seconds: float


class Clock(Timekeeper):
    """Simulated time of one run: no second of it passes on this machine.

    An order takes ``down / bandwidth + epochs * records / speed + up / bandwidth``. Bytes are those of the tensors at
    ``federation.wire``; heads of messages, descriptions of shards, the exchanges of secure aggregation, evaluation and
    the server's own work take no simulated time. Everything follows from orders, nothing from replies: the clock is
    the same whatever engine does the work, and after a kill.

    Args:
        timeline: of the run's progress; changed in place.

    Raises:
        ConfigError: the table of traces cannot be used, or is not that of the rounds so far.
    """

    word = "simulated"

    def __init__(self, config: RunConfig, stream: Stream, orders: Orders, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.config, self.stream, self.orders = config, stream, orders
        self.fleet = Fleet(config.devices, config.seed, config.federation.clients)
        if timeline.rounds and timeline.traces != self.fleet.traces:
            raise ConfigError(
                f"devices.profile: {config.devices.profile} is not what it was when the run began; put it back, or "
                "begin a new run"
            )
        timeline.traces = self.fleet.traces

    # ------------------------------------------------------------------ who takes part

    @property
    def asked(self) -> int:
        """Clients that are asked in a round: ``over_select`` times those that count."""
        federation = self.config.federation
        # 1.1 * 10 is a little more than 11 in floating point.
        return min(federation.clients, math.ceil(round(federation.over_select * federation.clients_per_round, 6)))

    def drawn(self, stage: int, round_: int) -> list[int]:
        """The clients of a round, of those that can be reached now; waits until there are enough.

        Raises:
            RunError: a day goes by without enough of them at any moment.
        """
        federation, seed = self.config.federation, self.config.seed
        if self.fleet.always:
            if self.asked == federation.clients_per_round:
                return sample(federation, seed, stage, round_)
            return seeded(seed, stage, round_, federation.clients, self.asked)
        begin = self.timeline.now
        while True:
            rng = seeding.generator(seed, "sampling", stage, round_)
            clients = suitable(rng, federation.clients, self.asked, self.reachable)
            if len(clients) == self.asked:
                return clients
            self.wait(range(federation.clients))
            if self.timeline.now - begin > DAY:
                raise RunError(
                    f"devices.profile: at no moment of a day {self.asked} clients can be reached together, which "
                    "federation.clients_per_round and over_select ask for; begin a run with fewer of them"
                )

    def reachable(self, client: int) -> bool:
        """Whether a client can be given an order now."""
        return not self.fleet[client].wait(self.timeline.now)

    def wait(self, clients: Iterable[int]) -> None:
        """Let time pass until one more of these clients can be reached."""
        now = self.timeline.now
        waits = [wait for client in clients if (wait := self.fleet[client].wait(now))]
        # Just before a window opens a wait may be less than what the clock can tell from nothing.
        self.timeline.now = max(now + min(waits, default=DAY), math.nextafter(now, math.inf))

    # ------------------------------------------------------------------ how long it takes

    def trip(self, state: ServerState, order: TrainOrder) -> Trip:
        """Bytes and seconds of an order."""
        wire, thin, method = self.config.federation.wire, self.orders.thin, self.orders.method
        extra = sum(map(math.prod, self.orders.extra_shapes(state, order).values()))
        trained = sum(tensor.size for tensor in order.trained.values())
        widths = {name: (BYTES if is_learnt(name) else BESIDE)[wire] for name in order.tensors}
        down = math.ceil(sum(widths[name] * tensor.size for name, tensor in order.tensors.items()))
        epochs = 1 if order.measure else epochs_of(method.training(order.stage, order.round).epochs, order.tasks)
        device = self.fleet[order.client]
        up = math.ceil((thin.bytes if thin else BYTES[wire]) * trained + BESIDE[wire] * extra)
        return Trip(down, up, device.seconds(down, epochs * self._records(order), up))

    def _records(self, order: TrainOrder) -> int:
        """How many records a client is taken to train on: as many as it was given."""
        extra = self.orders.method.extra(order.stage, order.round)
        return extra.most if extra else descriptions.most_records(self.config, self.stream, order.client, order.tasks)

    # ------------------------------------------------------------------ rounds that wait

    def first(self, trips: dict[Pair, Trip]) -> list[Pair]:
        """The participations of a round that are over first, ``clients_per_round`` of them; ties: by client."""
        by_time = sorted(trips, key=lambda pair: (trips[pair].seconds, pair))
        return by_time[: self.config.federation.clients_per_round]

    def spend(self, trips: Iterable[Trip]) -> None:
        """Let the time pass until the slowest of these orders is over; clients were at work for the sum."""
        seconds = [trip.seconds for trip in trips]
        self.timeline.now += max(seconds, default=0.0)
        self.timeline.busy += sum(seconds)
