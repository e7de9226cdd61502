"""O-LoRA: each stage learns in directions orthogonal to those of earlier stages.

Paper: Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning" (EMNLP 2023
Findings, arXiv 2310.14152).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field

from fcit.config import Section
from fcit.io.trees import Tensors
from fcit.methods.base import INVARIANTS, ServerState, Session
from fcit.methods.per_stage import PerStage
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import A, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class OLoRA(PerStage):
    """One LoRA per stage; all earlier ones are frozen and added, in training and at inference.

    y = W0 x + s sum_{i<t} B_i A_i x + s B_t A_t x
    loss = CE + orthogonality sum_layers sum_{i<t} sum |A_t A_i^T| + decay sum theta_t^2

    The absolute sum is that of the authors' code; the paper writes squares. The clients' A_t and B_t are averaged,
    which keeps A_t orthogonal to the frozen A_i, since the constraint is linear. A frozen pair is sent to a client
    once.

    Errors of re-implementations that are not repeated: earlier LoRAs left out of the forward pass in training
    (each was fitted to the backbone alone and then summed), and left trainable in the penalty, which
    damages them. With ``adapter.projector: per_subspace`` a stage trains with its own projector and
    inference averages all of them: possible, not recommended.
    """

    class Options(Section):
        """``orthogonality`` is the paper's lambda_1, ``decay`` lambda_2.

        0.5 and 0 are the authors' (as the public code of PRISM-FMCL, arXiv 2605.01061, cites them); the public toolbox
        MCITlib has 0.05 for the same absolute sum. It is not known which value the published tables used.
        """

        orthogonality: float = Field(
            0.5, ge=0, description="lambda_1; 0.5: the authors; the public toolbox MCITlib: 0.05; our benches: 0.005"
        )
        decay: float = Field(0.0, ge=0, description="lambda_2; 0: the authors")

    name = "olora"
    family = "expansion"
    summary = "a LoRA per stage, orthogonal to the earlier ones, all summed"
    mixes_ranks = True
    by_record = True
    answers = "Answers come from the sum of all subspaces; one alone is one term of it."
    invariants = INVARIANTS - {"mix-sums-to-one"}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        return {f"frozen-{n}": tensors for n, tensors in state.subspaces.items() if int(n) < state.stage}

    def held(self, shape: Shape, stages: int) -> Held:
        factors = 4.0 * self.config.adapter.rank * sum(width for width, _ in shape.adapted)
        earlier = subspace_bytes(self.config, shape, "per_subspace")
        return Held(
            training={"earlier A's": (stages - 1) * factors}, client={"earlier subspaces": (stages - 1) * earlier}
        )

    def prepare(self, session: Session) -> None:
        frozen = [session.constants[name] for name in sorted(session.constants, key=_stage)]
        session.adapters.add_frozen(frozen)
        for name, parameter in session.adapters.trainable.items():
            if A in name and frozen:
                stacked = torch.from_numpy(np.concatenate([tensors[name] for tensors in frozen]))
                session.notes[name] = stacked.to(parameter.device)

    def penalty(self, session):
        penalty = 0.0
        for name, parameter in session.adapters.trainable.items():
            if name in session.notes:
                penalty = penalty + self.options.orthogonality * (parameter @ session.notes[name].T).abs().sum()
            if self.options.decay and is_factor(name):
                penalty = penalty + self.options.decay * parameter.square().sum()
        return penalty

    def route(self, names, knowledge, features: np.ndarray) -> np.ndarray:
        """Every subspace with weight one."""
        return np.ones((len(features), len(names)), dtype=np.float32)


def _stage(group: str) -> int:
    return int(group.rpartition("-")[2])
