"""FedAvg (McMahan et al., 2017): the server takes the clients' sample-weighted mean."""

from __future__ import annotations

from typing import Any

from fcit.fedopt.base import INVARIANTS, FedOpt
from fcit.io.trees import Tensors


class FedAvg(FedOpt):
    """theta <- sum_k n_k theta_k / sum_k n_k."""

    summary = "sample-weighted mean of the clients' tensors"
    averages = True
    invariants = INVARIANTS

    def step(self, old: Tensors, mean: Tensors, memory: dict[str, Any]) -> Tensors:
        return mean
