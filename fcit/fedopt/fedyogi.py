"""FedYogi (Reddi et al., 2021, arXiv 2003.00295)."""

from __future__ import annotations

import numpy as np

from fcit.fedopt.adaptive import Momentum


class FedYogi(Momentum):
    """m <- beta_1 m + (1 - beta_1) Delta, v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2), step eta m / (sqrt v + tau).

    With v_0 = 0 (Flower 1.41) the first v is (1 - beta_2) Delta^2. No bias correction, there as in the paper.
    """

    summary = "server Yogi on the mean update: v grows and shrinks by bounded steps"

    def second(self, square: np.ndarray, v: np.ndarray) -> np.ndarray:
        return v - (1 - self.options.beta_2) * square * np.sign(v - square)
