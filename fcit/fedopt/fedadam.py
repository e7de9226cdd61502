"""FedAdam (Reddi et al., 2021, arXiv 2003.00295)."""

from __future__ import annotations

import math

import numpy as np

from fcit.fedopt.adaptive import Momentum


class FedAdam(Momentum):
    """m <- beta_1 m + (1 - beta_1) Delta, v <- beta_2 v + (1 - beta_2) Delta^2, step eta_t m / (sqrt v + tau).

    eta_t = eta sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)) as in Flower 1.41, t = 1 at a tensor's first step.
    The paper has no such correction (eta_t = eta); Adam itself (Kingma & Ba, 2015) has t where Flower has
    t + 1, and Flower corrects neither FedYogi nor FedAdagrad.
    """

    summary = "server Adam on the mean update"

    def second(self, square: np.ndarray, v: np.ndarray) -> np.ndarray:
        beta = self.options.beta_2
        return beta * v + (1 - beta) * square

    def rate(self, steps: int) -> float:
        first, second = (1 - beta ** (steps + 1) for beta in (self.options.beta_1, self.options.beta_2))
        return float(self.options.eta * math.sqrt(second) / first)
