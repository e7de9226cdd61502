"""A queue of orders and the worker processes that take them: what every engine with processes of its own has.

Each worker holds the backbone for the whole run and takes one order at a time, rather one of a client it has worked
for. A worker that dies is replaced and its order given out again.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flwr.app import Error, Message

from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.engines.virtual import VirtualGrid
from fcit.federation.engines.worker import Outcome
from fcit.federation.nodes import CLIENT_RAISED, FIRST_NODE


@dataclass
class Job:
    """One order and the text of its message; ``parts`` are its tensors as the engine sends them."""

    message: Message
    head: str
    parts: Any
    lost: list[str] = field(default_factory=list)  # why each worker that had it died


@dataclass
class Seat:
    """A place for a worker; the worker in it may be replaced."""

    number: int
    worker: Any
    job: Job | None = None


class PoolGrid(VirtualGrid):
    """Runs messages on worker processes.

    Args:
        clients: number of virtual clients.
        attempts: workers that an order may lose before the run stops.
    """

    #: The section of the configuration that the workers are described in, for messages.
    section: ClassVar[str]

    def __init__(self, clients: int, attempts: int) -> None:
        super().__init__(clients)
        self._attempts = attempts
        self._queue: deque[Job] = deque()
        self._done: dict[str, Message] = {}
        self._last_seat: dict[int, int] = {}
        self._seats: list[Seat] = []

    # ------------------------------------------------------------------ what an engine does

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    @abstractmethod
    def _jobs(self, messages: list[Message]) -> list[Job]:
        """Number the messages and make their tensors ready to be sent."""

    @abstractmethod
    def _begin(self, seat: Seat, job: Job) -> None:
        """Hand an order to an idle worker."""

    @abstractmethod
    def _ready(self, busy: Sequence[Seat], timeout: float) -> list[Seat]:
        """Seats whose worker has an outcome; waits until there is one, or the time is up."""

    @abstractmethod
    def _outcome(self, seat: Seat) -> Outcome:
        """The outcome of a ready worker.

        Raises:
            FCITError: of the process or the run, not of one client.
        """

    @abstractmethod
    def _renew(self, seat: Seat) -> None:
        """End the worker of a seat, if it still lives, and put a new one there."""

    # ------------------------------------------------------------------ the Grid interface

    @property
    def busy(self) -> int:
        """Workers with an order in hand."""
        return sum(seat.job is not None for seat in self._seats)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        jobs = self._jobs(list(messages))
        self._queue.extend(jobs)
        self._hand_out()
        return [job.message.metadata.message_id for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._collect(0.0)
        return [self._done.pop(key) for key in message_ids if key in self._done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies as they come; those missing after ``timeout`` seconds are given up."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while waiting:
                left = 3600.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    break
                self._collect(left)
                for key in [key for key in self._done if key in waiting]:
                    waiting.discard(key)
                    yield self._done.pop(key)
        finally:
            self._give_up(waiting)

    # ------------------------------------------------------------------ queue

    def _hand_out(self) -> None:
        """Give every idle worker an order, rather one of a client it has worked for."""
        for seat in self._seats:
            if seat.job is None and self._queue:
                known = (j for j in self._queue if self._last_seat.get(j.message.metadata.dst_node_id) == seat.number)
                job = next(known, self._queue[0])
                self._queue.remove(job)
                self._last_seat[job.message.metadata.dst_node_id] = seat.number
                seat.job = job
                self._begin(seat, job)

    def _collect(self, timeout: float) -> None:
        """Wait until at least one order is finished (or the time is up) and hand out new ones."""
        busy = [seat for seat in self._seats if seat.job is not None]
        if busy:
            for seat in self._ready(busy, timeout):
                self._finish(seat)
        self._hand_out()

    def _finish(self, seat: Seat) -> None:
        job, seat.job = seat.job, None
        if job is None:
            return
        outcome = self._outcome(seat)
        if outcome.kind in ("lost", "memory"):
            self._replace(seat, job, f"out of memory: {outcome.text}" if outcome.kind == "memory" else outcome.text)
            return
        self._done[job.message.metadata.message_id] = self._reply(job, outcome)

    def _reply(self, job: Job, outcome: Outcome) -> Message:
        if outcome.kind == "error":
            return Message(Error(code=CLIENT_RAISED, reason=outcome.text), reply_to=job.message)
        return Message(codec.put_together(outcome.text, outcome.arrays), reply_to=job.message)

    def _replace(self, seat: Seat, job: Job, reason: str) -> None:
        """A new worker in the seat; the order goes first in the queue.

        Raises:
            RunError: this order has cost too many workers.
        """
        self._renew(seat)
        job.lost.append(reason)
        if len(job.lost) >= self._attempts:
            meta = job.message.metadata
            raise RunError(
                f"the {meta.message_type} order of client {meta.dst_node_id - FIRST_NODE} lost its worker "
                f"{len(job.lost)} times ({self.section}.attempts), last: {reason}; give workers more memory "
                f"(fewer {self.section}.workers, a smaller training.batch_size) and resume the run"
            )
        self._queue.appendleft(job)

    def _give_up(self, waiting: set[str]) -> None:
        """Forget orders; a worker still busy with one is replaced, so that the next order need not wait for it."""
        self._queue = deque(job for job in self._queue if job.message.metadata.message_id not in waiting)
        for key in waiting:
            self._done.pop(key, None)
        for seat in self._seats:
            if seat.job is not None and seat.job.message.metadata.message_id in waiting:
                seat.job = None
                self._renew(seat)
