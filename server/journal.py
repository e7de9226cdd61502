"""What a run reports while it goes on: events to its folder and its watcher, and where its time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fcit.config import Training
from fcit.federation.messages import ClientUpdate
from fcit.runs.folder import RunDir
from fcit.runs.recorded import data_of
from fcit.runs.trackers import Watcher
from server.checkpoint import Progress


class Journal:
    """Writes events to ``events.jsonl``, passes them to the watcher, and sums up seconds per part of the run.

    Args:
        progress: stage and round of events, and the seconds spent, added to in place.
        worked: CPU seconds of clients' work so far, 0 where that is not known.
    """

    def __init__(
        self, run: RunDir, watcher: Watcher, progress: Progress, worked: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._run, self._watcher, self._progress, self._worked = run, watcher, progress, worked

    def event(self, kind: str, **values: Any) -> None:
        """Write an event and pass it to the watcher."""
        self._run.event(kind, **values)
        self._watcher.say(kind, **values)

    def round_event(self, kind: str, **values: Any) -> None:
        """An event with the stage and the round at hand."""
        self.event(kind, **values, stage=self._progress.stage, round=self._progress.round)

    def data_changes(self) -> None:
        """Report accepted changes of the data; those whose event a crash cut off, again."""
        reported = sum(event["event"] == "data-changed" for event in self._run.read_events())
        for change in data_of(self._run).get("data_changes", [])[reported:]:
            reason, values = "; ".join(change["said"]), {"accepted": change["time"], "changes": change["changes"]}
            self.round_event("data-changed", reason=reason, **values)

    def show(self, kind: str, **values: Any) -> None:
        """Pass something to the watcher that is not written down: how far the round is."""
        self._watcher.say(kind, **values)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent in the body to this part of the run, also if it fails."""
        begin, worked = time.perf_counter(), self._worked()
        try:
            yield
        finally:
            spent = self._progress.seconds.get(part, 0.0) + time.perf_counter() - begin
            self._progress.seconds[part] = round(spent, 4)
            cpu, more = self._progress.cpu_seconds, self._worked() - worked
            if cpu is not None and more:
                cpu[part] = round(cpu.get(part, 0.0) + more, 4)


def remarks(heads: list[ClientUpdate | None], training: Training) -> dict[str, Any]:
    """What the event of a round says only where it applies.

    ``skipped``: records that could not be used, and ``how`` each site trained, in the order of the round's
    participations; ``idle``: clients whose learning rate was 0 in every step.
    """
    skipped, how = [h.skipped if h else 0 for h in heads], [h.how if h else {} for h in heads]
    # With secure aggregation the number of steps is not known, and 0.
    idle = [h.client for h in heads if h and h.steps and not training.moves(h.steps)]
    values = {"skipped": skipped if any(skipped) else [], "how": how if any(how) else [], "idle": idle}
    return {key: value for key, value in values.items() if value}
