"""Rounds that do not wait, in a deployment: sites are given orders as they become free, in real time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate
from fcit.methods.base import Pair
from server.asynchronous import AsyncCollector, Buffer
from server.courier import NOBODY, Node
from server.errands import Answer, Errand, Errands
from server.participants import Slot
from server.real_time import RealTime
from server.timeline import Flight

_LOOK = 10.0  # seconds between two looks for sites that have connected


@dataclass(kw_only=True)
class LiveCollector(AsyncCollector):
    """Keeps ``concurrency`` sites at work and takes their updates as they come.

    Nothing here depends on time but who is given up (``federation.timeout``): with the same answers in the same order,
    and the same sites connected, a run is the same. Events ``ordered`` and ``arrived`` say what the order was.

    A site that was sent an order begins with the tensors of that moment. Memory holds these until it answers, those
    of orders between two server updates once.

    Updates that come are on the disk before the next one is looked at. So a server that is killed and goes on uses
    them: late ones by the orders that its checkpoint knows, fresh ones when it gives the same orders again, which it
    does first. What else was under way is lost and counted: a new process cannot fetch replies to messages of the old.

    Attributes:
        time: of the run.
    """

    time: RealTime
    _errands: Errands = field(init=False)
    _asked: set[Node] = field(default_factory=set, init=False)  # nodes that were probed for this server update
    _passed: set[int] = field(default_factory=set, init=False)  # clients that have failed in it
    _before: list[str] = field(init=False)  # orders that an earlier process gave and this one has not looked at
    _again: list[Pair] = field(init=False)  # whose fresh updates it accepted

    #: As :attr:`server.gather.Gathering.asked_again`.
    asked_again: ClassVar[str] = "sites anew; updates that have come are kept"

    def __post_init__(self) -> None:
        self._errands = Errands(self.courier, self._patience, self._discarded, self.time.read)
        self._before = sorted(self.dispatcher.timeline.flights, key=lambda name: int(name.partition("-")[2]))
        self._again = self.spill.pairs()

    @property
    def _patience(self) -> float:
        return self.config.federation.timeout

    def _fill(self, buffer: Buffer, attempt: int) -> None:
        """Take updates until the buffer is full, none has come for ``federation.timeout``, or no one is left to ask."""
        self.time.begin()
        self._asked, self._passed = set(), set()
        self._recover(buffer)
        since, begun = self.time.read(), False
        with self.journal.timed("training"):
            while len(buffer.usable) < self.size:
                if not begun:  # as long as all sites are at work on what was dropped no one is late
                    since = self.time.read()
                self._give(buffer)
                begun = begun or self._errands.open > 0
                left = since + self._patience - self.time.read()
                if len(buffer.usable) >= self.size or left <= 0 or not self._errands.busy:
                    break
                answer = self._errands.next(min(left, _LOOK))
                if answer is not None and self._settle(answer, buffer):
                    since = self.time.read()
        self._again = []  # what is left of these is of this server update

    def _drop(self, buffer: Buffer) -> list[Flight]:
        self._errands.drop()
        return super()._drop(buffer)

    # ------------------------------------------------------------------ giving orders

    def _give(self, buffer: Buffer) -> None:
        """Fill the places that are free, until no client suits or the buffer is full."""
        self.handshake.glance(self._asked, self._errands.busy)
        if not (drawn := self._drawn(buffer)) and not self._errands.busy:
            self.handshake.update()  # waits for sites that have just connected
            drawn = self._drawn(buffer)
        while drawn and len(buffer.usable) < self.size:
            for name, slot in drawn:
                self._begin(name, slot, buffer)
            drawn = self._drawn(buffer)

    def _drawn(self, buffer: Buffer) -> list[tuple[str, Slot]]:
        """Names and participations of the next orders; those first whose updates are there already.

        Clients suit that can be reached, are not at work, have no update in the buffer and have not failed since the
        server update before.
        """
        free, taken = (
            self.dispatcher.concurrency - self._errands.open,
            self._errands.busy | buffer.clients | self._passed,
        )

        def suits(client: int) -> bool:
            return client not in taken and self.courier.node(client) != NOBODY

        again = [pair for pair in self._again if suits(pair[0])][: max(free, 0)]
        self._again = [pair for pair in self._again if pair not in again]
        if again:
            return [self.dispatcher.named(*pair) for pair in again]
        return self.dispatcher.draw(free, suits) if free > 0 else []

    def _begin(self, name: str, slot: Slot, buffer: Buffer) -> None:
        """Give an order, after the question about the shard if it is new."""
        if self.assigner.is_new(slot):
            [(node, question)] = self.assigner.questions([slot])
            self._errands.send(name, slot, "query.describe", node, question)
        else:
            self.assigner.assign([slot])
            self._order(name, slot, buffer)

    def _order(self, name: str, slot: Slot, buffer: Buffer) -> bool:
        """Give an order to train; whether its update is there already."""
        if slot.pair not in self.state.assigned:  # it got no subspace; an event has said why
            self._passed.add(slot.client)
            return False
        order = self.orders.train(self.state, self.progress, slot)
        self.dispatcher.begin(name, order, self._patience)
        buffer.fresh[name] = order
        self.journal.round_event("ordered", client=slot.client, order=name)
        if self._adopt({slot.pair: order}):
            self._arrived(self._landed(name), buffer)
            return True
        self._errands.send(name, slot, "train", self.courier.node(slot.client), order)
        return False

    # ------------------------------------------------------------------ taking what comes

    def _settle(self, answer: Answer, buffer: Buffer) -> bool:
        """Deal with what came of an errand; whether the buffer has an update more."""
        (errand, reply), client = answer, answer.errand.slot.client
        if reply is None:
            self.journal.round_event("missing", client=client)
        if errand.order is None:
            self.assigner.settle([errand.slot], [] if reply is None else [reply])
            return self._order(errand.name, errand.slot, buffer)
        flight = self._landed(errand.name)
        update = None if reply is None else self._accepted(reply, {errand.slot.pair: errand.order})
        if reply is None or update is None:
            self._passed.add(client)
            return False
        received = codec.size(reply.content)
        if errand.name in buffer.fresh:
            self.spill.put(errand.order, update, received)
        else:
            marks = self.validator.marks(update)
            flight.update = self.spill.receive(errand.name, errand.order, update, received, marks)
        self._accept(update)
        self._arrived(flight, buffer)
        return True

    def _landed(self, name: str) -> Flight:
        """Free a place."""
        flight = self.dispatcher.timeline.flights.pop(name)
        self.dispatcher.timeline.busy += self.time.now - flight.begun
        return flight

    def _arrived(self, flight: Flight, buffer: Buffer) -> None:
        """An accepted update is on the disk."""
        buffer.arrive(flight)
        if flight.name in buffer.fresh:
            buffer.accepted.add(flight.order.pair)
        self.journal.round_event("arrived", client=flight.order.client, order=flight.name)

    def _discarded(self, errand: Errand) -> None:
        self.dispatcher.timeline.discarded += 1
        self.journal.round_event("discarded", client=errand.slot.client, order=errand.name)

    # ------------------------------------------------------------------ after a kill

    def _recover(self, buffer: Buffer) -> None:
        """Take what had come late before this process began; what else its checkpoint has under way is lost."""
        flights, lost = [self._landed(name) for name in self._before], []
        self._before = []
        for flight in flights:
            if self._recovered(flight):
                self._arrived(flight, buffer)
            else:
                lost.append(flight.order.client)
        if buffer.arrived:
            self.journal.round_event("reused", clients=[flight.order.client for flight in buffer.arrived])
        if lost:
            self.dispatcher.timeline.lost += len(lost)
            self.journal.round_event("lost", clients=lost)

    def _recovered(self, flight: Flight) -> bool:
        """Whether the update to an order was kept by an earlier process."""
        try:
            kept = self.spill.recovered(flight)
        except RunError as error:
            self.journal.round_event("spill-damaged", client=flight.order.client, reason=str(error))
            return False
        if kept is None:
            return False
        update = ClientUpdate(**kept.update, tensors={})
        self.progress.traffic["up"] += kept.received
        self.validator.recall(update, kept.marks)
        self._accept(update)
        flight.update = kept.update
        return True
