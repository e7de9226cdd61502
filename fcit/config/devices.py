"""The machines that a simulation pretends its clients have: ``devices:``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from fcit.config.section import Section

#: Profiles whose clients can be reached at any time, and those whose clients are away for a part of every day.
ALWAYS, AT_TIMES = ("uniform", "lognormal"), ("phone", "hospital")
#: What the name of a table of traces ends with.
TRACES = ".csv"


class Devices(Section):
    """Simulations only: how fast clients are and when they can be reached, on a clock that no real second moves."""

    profile: str = Field(
        "none",
        description="none: a run has no simulated time; uniform: all alike; lognormal: factors between clients; phone: "
        "wider ones, each reachable a few hours a night; hospital: narrow ones, reachable outside working hours; or a "
        "CSV file of one's own, relative to this file (see Clients that are slow or away)",
    )
    speed: float = Field(10.0, gt=0, description="records a second that the middle client trains on, each epoch anew")
    down: float = Field(50.0, gt=0, description="megabits a second to the middle client")
    up: float = Field(10.0, gt=0, description="megabits a second from the middle client")

    @field_validator("profile")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in ("none", *ALWAYS, *AT_TIMES) or value.endswith(TRACES):
            return value
        raise ValueError(f"must be none, {', '.join((*ALWAYS, *AT_TIMES))} or a file that ends with {TRACES}")

    @property
    def on(self) -> bool:
        """Whether there is simulated time."""
        return self.profile != "none"

    @property
    def always(self) -> bool:
        """Whether every client can be reached at any time, as far as the profile's name tells."""
        return self.profile in ("none", *ALWAYS)


class Asynchronous(Section):
    """Server updates from whatever updates have come, with ``federation.mode: async``."""

    rule: Literal["fedbuff", "fedasync"] = Field(
        "fedbuff",
        description="fedbuff: a server update takes the mean of `buffer` updates' differences; fedasync: it mixes each "
        "update into the server's tensors as it comes",
    )
    concurrency: int | None = Field(
        None, ge=1, description="clients (sites) that train at the same time; default: federation.clients_per_round"
    )
    buffer: int | None = Field(
        None,
        ge=1,
        description="updates that a server update takes (a round); default: federation.clients_per_round; of fedasync "
        "always 1",
    )
    staleness: Literal["polynomial", "hinge", "constant"] = Field(
        "polynomial",
        description="weight of an update that was trained tau server updates ago: (1 + tau)^-a, or 1 up to b and "
        "1 / (a (tau - b) + 1) beyond, or 1",
    )
    a: float = Field(
        0.5,
        gt=0,
        description="of polynomial and hinge; 0.5: fedbuff's 1 / sqrt(1 + tau). FedAsync's hinge was run with 4 and 10",
    )
    b: int = Field(4, ge=0, description="of hinge: server updates after which an update begins to lose weight")
    mixing: float = Field(0.6, gt=0, le=1, description="of fedasync: share of a fresh update in the server's tensors")
