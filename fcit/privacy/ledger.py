"""What a run has released so far: all that its epsilon depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: In place of a client where any may have taken part in a release.
EVERYONE = "everyone"


@dataclass
class Ledger:
    """Counts of releases in which a client took part; saved with every checkpoint.

    Attributes:
        multiplier: noise multiplier z of every release.
        clip: clipping norm of the next round.
        clients: releases by client; with secret sampling all of them, under :data:`EVERYONE`.
        homes: the same by subspace (or ``shared``): releases of its tensors.
        stages: largest number of releases of any client at the end of each stage.
    """

    multiplier: float
    clip: float
    clients: dict[str, int] = field(default_factory=dict)
    homes: dict[str, dict[str, int]] = field(default_factory=dict)
    stages: list[int] = field(default_factory=list)

    def count(self, client: int | str, homes: Iterable[str]) -> None:
        """Note that a client's order belonged to a round that was released, whether it answered or not."""
        for counts in (self.clients, *(self.homes.setdefault(home, {}) for home in homes)):
            counts[str(client)] = counts.get(str(client), 0) + 1

    def releases(self, home: str | None = None) -> int:
        """Releases in which the client that took part most often did; of one home only, or of all."""
        counts = self.clients if home is None else self.homes.get(home, {})
        return max(counts.values(), default=0)
