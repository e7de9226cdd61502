"""The common part of FedAdagrad, FedAdam and FedYogi (Reddi et al., 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from fcit.config import Section
from fcit.fedopt.base import FedOpt
from fcit.io.trees import Tensors


class Adaptive(FedOpt):
    """Delta = sum_k n_k theta_k / N - theta; theta <- theta + eta m / (sqrt v + tau), with m and v of each optimiser.

    Every tensor has its own state, which changes only when that tensor was updated. m_0 = 0. v_0 = 0 as in
    Flower 1.41 and 1.42; the paper asks for v_0 >= tau^2, which ``v0: tau2`` gives. The defaults of eta, tau and the
    betas are those of OpenFedLLM (Ye et al., 2024, arXiv 2402.06954), where LoRA is trained as here.
    """

    server_copies = 1  # v

    class Options(Section):
        """``eta`` is the server's learning rate; ``tau`` limits the amplification of small updates."""

        eta: float = Field(1e-3, gt=0)
        tau: float = Field(1e-3, gt=0)
        v0: Literal["zero", "tau2"] = "zero"

    def step(self, old: Tensors, mean: Tensors, memory: dict[str, Any]) -> Tensors:
        new = {}
        for name, theta in old.items():
            state = memory.setdefault(name, {"steps": 0, "v": np.full_like(theta, self._v0)})
            state["steps"] += 1
            m = self.direction(mean[name] - theta, state)
            new[name] = theta + self.rate(state["steps"]) * m / (np.sqrt(state["v"]) + self.options.tau)
        return new

    @property
    def _v0(self) -> float:
        return self.options.tau**2 if self.options.v0 == "tau2" else 0.0

    def direction(self, delta: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """m of one tensor; updates ``state["v"]`` and other entries of the optimiser's state."""
        raise NotImplementedError

    def rate(self, steps: int) -> float:
        """The server's learning rate at a tensor's ``steps``-th step (from 1)."""
        return float(self.options.eta)


class Momentum(Adaptive):
    """m <- beta_1 m + (1 - beta_1) Delta, for FedAdam and FedYogi."""

    server_copies = 2  # m and v

    class Options(Adaptive.Options):
        """``beta_1`` and ``beta_2`` are the decay rates of m and v."""

        beta_1: float = Field(0.9, ge=0, lt=1)
        beta_2: float = Field(0.99, ge=0, lt=1)

    def direction(self, delta: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        beta = self.options.beta_1
        state["m"] = beta * state.get("m", np.zeros_like(delta)) + (1 - beta) * delta
        state["v"] = self.second(delta**2, state["v"])
        return state["m"]

    def second(self, square: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The new v, from Delta^2 and the old v."""
        raise NotImplementedError
