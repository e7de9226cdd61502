"""A method of one's own in one file: clients remember, the server remembers, an extra loss, a route.

fcit check examples/own/anchored.py:Anchored
fcit run configs/demo-finetune.yaml method=./examples/own/anchored.py:Anchored
"""

from collections.abc import Iterable

import numpy as np
import torch
from pydantic import Field

from fcit.config import Section
from fcit.fedopt.aggregator import Aggregator
from fcit.methods.base import INVARIANTS, Method, ServerState, Session, Update


class Anchored(Method):
    """Plain fine-tuning, but a client that comes back is held near what it last left behind.

    loss <- loss + strength * sum |theta - theta_last|^2
    """

    class Options(Section):
        """Keys under ``method:``."""

        strength: float = Field(0.01, ge=0)
        volume: float = Field(1.0, ge=0, le=1, description="how loud the adapter speaks at inference")

    name = "anchored"
    summary = "fine-tuning held near what each client last left behind"
    remembers = True  # clients keep session.memory between their orders
    invariants = INVARIANTS - {"mix-sums-to-one"}

    # ---- on a client

    def prepare(self, session: Session) -> None:
        trained, last = session.adapters.trainable, session.memory.get("last", {})
        session.notes["anchors"] = {name: torch.from_numpy(last[name]).to(trained[name].device) for name in last}

    def loss(self, session, examples, features):
        loss = super().loss(session, examples, features)
        for name, anchor in session.notes["anchors"].items():
            loss = loss + self.options.strength * (session.adapters.trainable[name] - anchor).square().sum()
        return loss

    def finish(self, session: Session) -> dict[str, np.ndarray]:
        session.memory["last"] = session.adapters.read()
        session.memory["visits"] = session.memory.get("visits", 0) + 1
        return {"visits": np.array([session.memory["visits"]], np.float32)}

    # ---- on the server

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        return {"visits": (1,)}

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        visits = state.memory.setdefault("visits", {})

        def watched():
            for update in updates:
                visits[str(update.client)] = int(update.extra["visits"][0])
                yield update

        super().aggregate(state, watched(), aggregator)

    # ---- at inference

    def route(self, names, knowledge, features):
        return np.full((len(features), len(names)), self.options.volume, dtype=np.float32)
