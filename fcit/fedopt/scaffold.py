"""SCAFFOLD (Karimireddy et al., 2020, arXiv 1910.06378), option II, around AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fcit.config import RunConfig
from fcit.fedopt.fedavg import FedAvg
from fcit.io.trees import Tensors
from fcit.models.layout import is_projector

#: AdamW's normalised steps, and so the variates, are a few units at most; one huge variate would reach all clients.
ABSURD = 1e3


class Scaffold(FedAvg):
    """Control variates: c on the server, c_k at every client, initially zero; the server averages models.

    Client, with x the model it was sent, eta_i the learning rate of step i and y_k its final model:

        theta <- theta - eta_i (c - c_k)                           after every optimiser step
        c_k+ = c_k - c + (x - y_k) / sum_i eta_i,  returned as c_k+ - c_k

    Server, with N clients in total and the set S of participants:  c <- c + (1 / N) sum_{k in S} (c_k+ - c_k).

    The paper has SGD with K steps of one eta and divides by K eta. Our adaptation to AdamW: divide by the sum
    of the scheduled learning rates, so that a variate is the mean normalised step, and correct outside the
    optimiser, so that AdamW's moments are those of plain gradients. There is one variate per subspace and one for the
    shared projector; c is sent and c_k+ - c_k returned with every trained tensor, which doubles FedAvg's traffic.

    If all rates are 0 (``training.schedule: trainer`` and an epoch of one step), c_k is unchanged (our choice; the
    formula would be 0 / 0).
    """

    summary = "control variates against client drift; twice the traffic, clients keep their variate"
    remembers = True
    server_copies = client_copies = 1  # variates
    training_copies = 2  # what training began with, and the correction
    averages = False
    halves = False

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._clients = config.federation.clients
        self._one_projector = config.adapter.projector == "shared"

    # ------------------------------------------------------------------ client

    def _own(self, session: Any, name: str) -> dict[str, np.ndarray]:
        """The dictionary in the client's memory that holds its variate of a tensor."""
        home = "shared" if self._one_projector and is_projector(name) else f"subspace-{session.subspace}"
        return session.memory.setdefault(home, {})

    def prepare(self, session: Any) -> None:
        notes = session.notes
        trained = {n: p for n, p in session.adapters.trainable.items() if p.requires_grad}
        notes["start"] = {n: p.detach().clone() for n, p in trained.items()}
        notes["correction"] = {
            n: torch.as_tensor(session.received[n] - self._own(session, n).get(n, np.float32(0))).to(p.device)
            for n, p in trained.items()
        }
        notes["rates"] = 0.0

    def on_step(self, session: Any) -> None:
        session.notes["rates"] += session.lr
        for name, correction in session.notes["correction"].items():
            parameter = session.adapters.trainable[name].detach()
            parameter.copy_(parameter.float() - session.lr * correction)

    def finish(self, session: Any) -> Tensors:
        changes = {}
        for name, start in session.notes["start"].items():
            moved = (start - session.adapters.trainable[name].detach()).float().cpu().numpy()
            control = self._own(session, name)
            if not session.notes["rates"]:
                changes[name] = np.zeros_like(moved)
                continue
            changes[name] = (moved / session.notes["rates"] - session.received[name]).astype(np.float32)
            control[name] = control.get(name, np.float32(0)) + changes[name]
        return changes

    # ------------------------------------------------------------------ server

    def broadcast(self, tensors: Tensors, memory: dict[str, Any]) -> Tensors:
        return {name: memory.get(name, np.zeros_like(t)) for name, t in tensors.items()}

    def extra_shapes(self, trained: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return dict(trained)

    def reject_reason(self, extra: Tensors) -> str | None:
        largest = max((float(np.abs(tensor).max()) for tensor in extra.values() if tensor.size), default=0.0)
        return f"a control variate moved by {largest:.3g}, over {ABSURD:.0f}" if largest > ABSURD else None

    def absorb(self, sums: Tensors, memory: dict[str, Any]) -> None:
        for name, total in sums.items():
            memory[name] = (memory.get(name, 0.0) + total / self._clients).astype(np.float32)
