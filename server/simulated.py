"""Rounds that do not wait, on the simulated clock."""

from __future__ import annotations

from dataclasses import dataclass

from server.asynchronous import AsyncCollector, Buffer
from server.dispatch import Dispatcher
from server.timeline import Flight


@dataclass(kw_only=True)
class SimulatedCollector(AsyncCollector):
    """Lets the clock say whose updates come, and has them trained.

    The server's tensors change with a server update only. So all orders that are given between two of them are carried
    out together before the second one, those whose updates come later as well: these wait on the disk. Memory holds
    no update at any time; the disk holds those of concurrency and buffer.

    In a stage's last round what cannot come in time is not trained.
    """

    dispatcher: Dispatcher

    def _fill(self, buffer: Buffer, attempt: int) -> None:
        self._pass_time(buffer)
        self._train(buffer, attempt)

    def _pass_time(self, buffer: Buffer) -> None:
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

    def _train(self, buffer: Buffer, attempt: int) -> None:
        """Have the orders carried out that were given since the server update before."""
        come = {flight.name for flight in buffer.arrived}
        names = [n for n in buffer.fresh if n not in buffer.trained and (n in come or not self._last)]
        buffer.trained.update(names)
        orders = {(order.client, order.shard): order for order in (buffer.fresh[name] for name in names)}
        adopted = self._adopt(orders)
        asked = self._ask({pair: order for pair, order in orders.items() if pair not in adopted}, attempt)
        buffer.accepted |= adopted.keys() | asked.keys()

    def _keep(self, buffer: Buffer) -> None:
        """Keep what was trained and comes later."""
        for flight in self.dispatcher.timeline.flights.values():
            if flight.name in buffer.trained and flight.order.pair in buffer.accepted:
                flight.update = self.spill.keep(flight.name, buffer.fresh[flight.name])

    def _drop(self, buffer: Buffer) -> list[Flight]:
        """As :meth:`AsyncCollector._drop`; what was given and is not trained is charged."""
        flights = super()._drop(buffer)
        for flight in flights:
            if flight.name in buffer.fresh and flight.name not in buffer.trained:
                self.charge(flight.down, 0)
        return flights
