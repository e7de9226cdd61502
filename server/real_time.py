"""Real time of a deployment's run: seconds in which a server was at work on it."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.timeline import Timekeeper, Timeline


class RealTime(Timekeeper):
    """Counts the seconds of a run from its first order on, also those of evaluation and of waiting.

    Seconds in which no server was there, between a kill and its resumption, are not counted; a run that goes on counts
    on from its checkpoint, from its start-up on.

    Args:
        read: seconds of a clock that never goes back.
    """

    word = "elapsed"

    def __init__(self, timeline: Timeline, read: Callable[[], float] = time.monotonic) -> None:
        super().__init__(timeline)
        self.read = read
        self._counted: float | None = None  # until when, by ``read``; None: not begun in this process
        if timeline.now:
            self.begin()

    def begin(self) -> None:
        """Set the clock going, in this process."""
        if self._counted is None:
            self._counted = self.read()

    def count(self) -> None:
        """As :meth:`server.timeline.Timekeeper.count`."""
        if self._counted is not None:
            moment = self.read()
            self.timeline.now += moment - self._counted
            self._counted = moment

    @property
    def now(self) -> float:
        """Seconds since the run's first order, of those in which it was going."""
        self.count()
        return self.timeline.now
