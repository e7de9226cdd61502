"""FedAdagrad (Reddi et al., 2021, arXiv 2003.00295)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcit.fedopt.adaptive import Adaptive


class FedAdagrad(Adaptive):
    """v <- v + Delta^2, theta <- theta + eta Delta / (sqrt v + tau).

    m = Delta: the paper writes m for all three of its optimisers and has beta_1 = 0 here, as has Flower 1.41.
    """

    summary = "server Adagrad on the mean update"

    def direction(self, delta: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        state["v"] = state["v"] + delta**2
        return delta
