"""Time in a checkpoint, simulated or real: the clock, and the orders that clients are at work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fcit.federation.messages import TrainOrder
from fcit.methods.base import Pair


@dataclass
class Done:
    """An order without its tensors: what the server notes when its update is accepted."""

    client: int
    shard: str
    stage: int
    round: int
    tasks: list[int]
    subspace: str
    constants: list[str]
    numbers: int  # that were trained and returned

    @classmethod
    def of(cls, order: TrainOrder) -> Done:
        """What is left of an order."""
        numbers = sum(tensor.size for tensor in order.trained.values())
        values = order.client, order.shard, order.stage, order.round, order.tasks, order.subspace, order.constants
        return cls(*values, numbers)

    @property
    def pair(self) -> Pair:
        """Client and shard."""
        return self.client, self.shard


@dataclass
class Flight:
    """An order that was given and whose update has not come: of asynchronous runs.

    Attributes:
        name: by stage and number of the order in it; names the file of its update.
        begun: seconds at which it was given, ``arrival`` at which its update comes; in real time until which it is
            waited for.
        down: bytes to the client, ``up`` from it, on the simulated clock; real ones are counted as they travel.
        turns: how often its subspace had been updated when it was given.
        update: the update without its tensors, if it was accepted; None if it was rejected, or is not trained yet.
    """

    name: str
    order: Done
    begun: float
    arrival: float
    down: int
    up: int
    turns: int
    update: dict[str, Any] | None = None

    @property
    def when(self) -> tuple[float, int]:
        """By which events are ordered: time, then client."""
        return self.arrival, self.order.client


@dataclass
class Timeline:
    """Time of a run so far, in seconds: simulated, or real (:class:`server.real_time.RealTime`).

    Attributes:
        now: of the server.
        rounds: at the end of each round of the run, ``stages`` at the end of each stage.
        busy: of all clients together, with those whose updates came too late or were dropped.
        late: updates that came after the deadline of a round with over-selection.
        dropped: orders that the end of a stage cut off.
        lost: in real time, those that were under way when the server ended, and were given again or to others.
        discarded: in real time, replies to orders that had been dropped or waited for in vain.
        staleness: by number of server updates, how many updates were so late.
        ordered: orders of the stage at hand.
        flights: those whose updates have not come, by name.
        traces: SHA-256 of the table of traces that the run began with; empty without one.
    """

    now: float = 0.0
    rounds: list[float] = field(default_factory=list)
    stages: list[float] = field(default_factory=list)
    busy: float = 0.0
    late: int = 0
    dropped: int = 0
    lost: int = 0
    discarded: int = 0
    staleness: dict[str, int] = field(default_factory=dict)
    ordered: int = 0
    flights: dict[str, Flight] = field(default_factory=dict)
    traces: str = ""

    def results(self, profile: str) -> dict[str, Any]:
        """Entries of ``results.json`` under ``simulated``."""
        return {
            "profile": profile,
            **({"traces": self.traces} if self.traces else {}),
            **self._course,
            "late": self.late,
            "dropped": self.dropped,
            "staleness": self.staleness,
        }

    @property
    def measured(self) -> dict[str, Any]:
        """Entries of ``results.json`` under ``real_time``."""
        return {
            **self._course,
            "dropped": self.dropped,
            "lost": self.lost,
            "discarded": self.discarded,
            "staleness": self.staleness,
        }

    @property
    def _course(self) -> dict[str, Any]:
        return {"seconds": self.now, "rounds": self.rounds, "stages": self.stages, "client_seconds": self.busy}


class Timekeeper:
    """Notes when the rounds and stages of a run were over.

    Args:
        timeline: of the run's progress; changed in place.
    """

    #: What events call the server's seconds.
    word: ClassVar[str]

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    @property
    def now(self) -> float:
        """Seconds since the run's first order."""
        return self.timeline.now

    def count(self) -> None:
        """Bring the seconds up to now, before they are written down."""

    def end_round(self) -> None:
        """Note when a round was over."""
        self.timeline.rounds.append(self.now)

    def end_stage(self) -> None:
        """Note when a stage was over."""
        self.timeline.stages.append(self.now)
