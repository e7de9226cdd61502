"""Simulated time in a checkpoint: the clock, and the orders that clients are at work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    numbers: int  # that were trained

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
        begun: simulated seconds at which it was given, ``arrival`` at which its update comes.
        down: bytes to the client, ``up`` from it.
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
    """Simulated time of a run so far, in seconds.

    Attributes:
        now: of the server.
        rounds: at the end of each round of the run, ``stages`` at the end of each stage.
        busy: of all clients together, with those whose updates came too late or were dropped.
        late: updates that came after the deadline of a round with over-selection.
        dropped: orders that the end of a stage cut off.
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
    staleness: dict[str, int] = field(default_factory=dict)
    ordered: int = 0
    flights: dict[str, Flight] = field(default_factory=dict)
    traces: str = ""

    def results(self, profile: str) -> dict[str, Any]:
        """Entries of ``results.json``."""
        return {
            "profile": profile,
            **({"traces": self.traces} if self.traces else {}),
            "seconds": self.now,
            "rounds": self.rounds,
            "stages": self.stages,
            "client_seconds": self.busy,
            "late": self.late,
            "dropped": self.dropped,
            "staleness": self.staleness,
        }
