"""EWC: a quadratic penalty keeps weights that were important for earlier stages near their old values.

Paper: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (PNAS 2017,
arXiv 1612.00796); the online form with one running Fisher is of Schwarz et al. (arXiv 1805.06370).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field

from fcit.config import Section
from fcit.data.collate import images_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.io.trees import Tensors
from fcit.methods.base import Method, ServerState, Session, Update
from fcit.methods.views import Held, subspace_bytes

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Far above any mean squared gradient of a converging model; one such value would dominate every later loss.
ABSURD = 1e8


class EWC(Method):
    """One adapter with a quadratic penalty around an anchor, online form.

    After stage t: theta* = theta_t and F <- decay F + F_t, with the diagonal empirical Fisher

        F_t = sum_k n_k F_k / sum_k n_k,   F_k = mean over records of (grad CE)^2, record by record.

    Later stages: loss = CE + (strength / 2) sum_p F_p (theta_p - theta*_p)^2.

    The clients of a stage's last round estimate F_k on their shards, without the penalty and without
    dropout; the server averages (our choice: a rarely sampled client could not estimate it alone).
    Anchor and Fisher are sent to a client once per stage.

    Other implementations differ: they square gradients of whole batches, which underestimates the Fisher
    by about the batch size (so strengths are not comparable); keep one anchor and Fisher per task instead of
    the running sum; leave the projector unprotected. Here everything that is trained is protected.
    """

    class Options(Section):
        """``strength`` is the paper's lambda. The published code does not state it; see ``docs/protocol.md``."""

        strength: float = Field(
            400.0, ge=0, description="lambda; 400: the public code of PRISM-FMCL (arXiv 2605.01061); our benches: 1000"
        )
        decay: float = Field(1.0, ge=0, le=1, description="1: the Fishers of all stages have equal weight")
        samples: int = Field(32, ge=1, description="records of a shard that a client estimates the Fisher on")

    name = "ewc"
    family = "regularisation"
    by_round = True
    summary = "quadratic anchor weighted by the Fisher information of earlier stages"
    #: An SVD rotates the factors in every round; a Fisher of the old factors does not apply to the new ones.
    factors = frozenset({"separate", "alternate", "frozen_a"})
    whole_rank = "clients estimate the Fisher information of every number, and those of a smaller rank have fewer"

    # ------------------------------------------------------------------ client

    def measured_records(self, count: int) -> int:
        return min(count, self.options.samples)

    def prepare(self, session: Session) -> None:
        for group in session.constants.values():
            for name, tensor in group.items():
                session.notes[name] = torch.from_numpy(tensor).to(session.adapters.trainable[_parameter(name)].device)

    def penalty(self, session):
        penalty = 0.0
        for name, parameter in session.adapters.trainable.items():
            if f"fisher/{name}" in session.notes:
                moved = parameter - session.notes[f"anchor/{name}"]
                penalty = penalty + self.options.strength / 2 * (session.notes[f"fisher/{name}"] * moved.square()).sum()
        return penalty

    def finish(self, session: Session) -> Tensors:
        if not session.last_round:
            return {}
        chosen = session.generator("fisher").permutation(len(session.examples))[: self.options.samples]
        names = list(session.adapters.trainable)
        squares = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in session.adapters.trainable.items()}
        with session.adapters.resting() as parameters:
            for index in chosen:
                example = [session.examples[int(index)]]
                features = session.backbone.vision_features(session.image_root, images_of(example))
                gradients = torch.autograd.grad(session.backbone.loss(example, features), parameters)
                for name, gradient in zip(names, gradients, strict=True):
                    squares[name] += gradient.float().square()
        return {name: (s / len(chosen)).cpu().numpy() for name, s in squares.items()}

    # ------------------------------------------------------------------ server

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        if state.round < self.config.federation.rounds - 1:
            return {}
        return {name: tensor.shape for name, tensor in self._held(state).items()}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        if any((tensor < 0).any() or (tensor > ABSURD).any() for tensor in extra.values()):
            return f"a Fisher information below 0 or above {ABSURD:.0e}"
        return None

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        fisher = Mean()

        def watched() -> Iterable[Update]:
            for update in updates:
                if update.extra:
                    fisher.add(update.extra, update.examples)
                yield update

        super().aggregate(state, watched(), aggregator)
        if fisher.weight:
            state.memory["fresh"] = fisher.result()

    def end_stage(self, state: ServerState, stage: int) -> None:
        fresh = state.memory.pop("fresh", None)
        if fresh is None:
            return
        before = state.memory.get("fisher", {})
        state.memory["fisher"] = {n: np.asarray(self.options.decay * before.get(n, 0.0) + f) for n, f in fresh.items()}
        state.memory["anchor"] = dict(self._held(state))
        state.memory["stage"] = stage

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        if "anchor" not in state.memory:
            return {}
        parts = {f"{part}/{n}": t for part in ("anchor", "fisher") for n, t in state.memory[part].items()}
        return {f"ewc-{state.memory['stage']}": parts}

    def held(self, shape: Shape, stages: int) -> Held:
        both = 2 * subspace_bytes(self.config, shape, "shared", "per_subspace")
        held = {"Fisher information and anchor": both}
        return Held(training=held, client=held, server={**held, "Fisher information of a stage": both / 2})

    @staticmethod
    def _held(state: ServerState) -> Tensors:
        return {**state.shared, **state.subspaces["0"]}


def _parameter(name: str) -> str:
    return name.partition("/")[2]
