"""The Gaussian mechanism of one round: clipped updates in, noisy means out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fcit.io.trees import Tensors
from fcit.privacy import clipping
from fcit.privacy.noise import Noise


@dataclass
class Mechanism:
    """DP-FedAvg (McMahan et al., 2018, arXiv 1710.06963) with a fixed denominator.

    A client's update is clipped once, over all its tensors, whatever homes they belong to (its subspace and the shared
    tensors). All homes that some participant was to train are released, each once:

        theta <- theta + (sum_k clip_C(theta_k - theta) + N(0, (z C)^2 I)) / n

    n is the number of clients per round, not of those who answered or belong to the home. A client whose
    contribution is replaced by zero thus moves the sums, taken together, by at most C.

    Args:
        clip: C.
        multiplier: z.
        clients: n.
        homes: the tensors that are trained in this round, by home.
        noise: where the noise comes from.
        owner: of this round's noise: stage and round.
    """

    clip: float
    multiplier: float
    clients: int
    homes: Mapping[str, list[str]]
    noise: Noise
    owner: tuple[int, int]
    released: list[str] = field(default_factory=list)
    _short: int = 0
    _updates: int = 0

    def clipped(self, tensors: Tensors, old: Tensors) -> Tensors:
        """One client's update, clipped; ``old`` are the server's tensors, of all its homes."""
        result, norm = clipping.clipped(tensors, old, self.clip)
        self.count(norm <= self.clip, 1)
        return result

    def count(self, short: int, updates: int) -> None:
        """Count updates that were clipped, ``short`` of which did not need it."""
        self._short += short
        self._updates += updates

    def release(self, home: str, sums: Tensors, old: Tensors) -> Tensors:
        """The noisy mean of a home's tensors (float32); empty for a home that was not trained.

        The noise depends on the sums as well, by a keyed hash: if a round is repeated after a crash, the same
        sums have the same noise, and other sums have independent noise. With equal noise on both, their difference
        would be an update without any.

        Args:
            sums: of clipped differences, by name; what is missing is 0.

        Raises:
            ValueError: the home was released before in this round.
        """
        if home in self.released:
            raise ValueError(f"home {home!r} was aggregated twice in a round: only one release is accounted for")
        names = self.homes.get(home, [])
        self.released.append(home)
        mark = hashlib.sha256()
        for name in names:
            mark.update(sums[name].tobytes() if name in sums else b"")
        mean = {}
        for name in names:
            drawn = self.noise.normal(old[name].shape, *self.owner, home, mark.hexdigest(), name)
            total = sums.get(name, 0.0) + self.multiplier * self.clip * drawn
            mean[name] = np.asarray(old[name] + total / self.clients, np.float32)
        return mean

    def share(self, sigma: float) -> float:
        """Noisy share of the updates that needed no clipping: 1/2 + (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / n.

        A client without an update counts as half of one, so that replacing its contribution by zero moves the sum by
        1/2.
        """
        total = self._short - self._updates / 2
        drawn = self.noise.normal((1,), *self.owner, "count", str(total))
        return float(0.5 + (total + sigma * drawn[0]) / self.clients)
