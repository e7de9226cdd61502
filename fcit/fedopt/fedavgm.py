"""FedAvgM (Hsu et al., 2019, arXiv 1909.06335): momentum on the server."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fcit.config import Section
from fcit.fedopt.base import FedOpt
from fcit.io.trees import Tensors


class FedAvgM(FedOpt):
    """m <- beta m + Delta, theta <- theta + eta m, where Delta = sum_k n_k theta_k / N - theta; m_0 = 0.

    The paper's form, in which a steady Delta ends in steps of eta Delta / (1 - beta); others write
    m <- beta m + (1 - beta) Delta. Flower 1.41's FedAvgM computes the same, with beta = 0 as its default.
    """

    class Options(Section):
        """``beta`` is the momentum (the paper's 0.9), ``server_learning_rate`` is eta."""

        beta: float = Field(0.9, ge=0, lt=1)
        server_learning_rate: float = Field(1.0, gt=0)

    summary = "server momentum on the mean update"
    server_copies = 1

    def step(self, old: Tensors, mean: Tensors, memory: dict[str, Any]) -> Tensors:
        new = {}
        for name, theta in old.items():
            delta = mean[name] - theta
            m = self.options.beta * memory[name]["m"] + delta if name in memory else delta
            memory[name] = {"m": m}
            new[name] = theta + self.options.server_learning_rate * m
        return new
