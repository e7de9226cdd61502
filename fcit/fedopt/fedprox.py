"""FedProx (Li et al., 2020, arXiv 1812.06127): a proximal term keeps clients near the model they were sent."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fcit.config import Section
from fcit.fedopt.fedavg import FedAvg


class FedProx(FedAvg):
    """Clients minimise F_k(theta) + (mu / 2) ||theta - x||^2, x being what the server sent; the server averages.

    The term is applied as its gradient, mu (theta - x), before clipping; reported losses are F_k alone. It
    penalises changes of the factors A and B, which is not the same as changes of the product B A.
    """

    class Options(Section):
        """``mu`` is the strength of the proximal term."""

        mu: float = Field(0.01, ge=0)

    summary = "clients kept near the server's model by (mu/2) ||theta - x||^2; the server averages"

    def prepare(self, session: Any) -> None:
        trained = {n: p for n, p in session.adapters.trainable.items() if p.requires_grad}
        session.notes["start"] = {n: p.detach().clone() for n, p in trained.items()}

    def on_gradients(self, session: Any) -> None:
        for name, start in session.notes["start"].items():
            parameter = session.adapters.trainable[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.options.mu)
