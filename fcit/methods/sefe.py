"""SEFE's RegLoRA: a penalty on the entries of the update that mattered most in earlier stages.

Paper: Chen et al., "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction Tuning"
(ICML 2025, arXiv 2505.02486), as its released code has it.
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
from fcit.models.layout import A, B

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Entries of a product that are computed at a time.
_CHUNK = 1 << 18


class SEFE(PerStage):
    """One LoRA per stage on top of the frozen earlier ones; it leaves their key entries alone.

    y = W0 x + s sum_{i<t} B_i A_i x + s B_t A_t x
    loss = CE + (strength / L) sum_layers mean_{(p,q) in K} |(B_t A_t)_pq|

    K has, for every earlier stage, the positions of the fraction ``keys`` of entries of |B_i A_i| that are largest, and
    L is the number of adapted layers (224 in the released code). A position of several stages counts several times.

    Keys are recomputed by every client from the earlier pairs, which it has anyway: nothing else is sent, where lists
    would be larger than the adapter. They take 24 bytes each in the memory of the training process: 2 % of a 4096 x
    11008 layer are 22 MB per stage. Only the products at key positions are formed at a step; the released code forms
    the whole B A of every layer. It merges earlier pairs into the weights, which is the same model.

    This is RegLoRA alone, as the public toolbox MCITlib calls its own version. The paper's other half, answer styles
    (ASD), is a transformation of data for any method: ``data.styles``. The projector, if it is trained, is not
    protected.
    """

    class Options(Section):
        """``keys`` is the paper's M, ``strength`` its lambda."""

        keys: float = Field(
            0.02, gt=0, le=1, description="fraction of a stage's entries that are protected; 0.02: paper"
        )
        strength: float = Field(2500.0, ge=0, description="weight of the penalty (lambda); 2500: the released code")

    name = "sefe"
    family = "regularisation"
    summary = "a LoRA per stage that leaves the largest entries of earlier updates alone (RegLoRA)"
    mixes_ranks = True
    by_record = True
    answers = "Answers come from the sum of all subspaces; one alone is one term of it."
    invariants = INVARIANTS - {"mix-sums-to-one"}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        return {f"frozen-{n}": tensors for n, tensors in state.subspaces.items() if int(n) < state.stage}

    def held(self, shape: Shape, stages: int) -> Held:
        """Positions and weights: 24 bytes for each; and the product of one layer, with its absolute values."""
        keys = 24.0 * (stages - 1) * self.options.keys * sum(a * b for a, b in shape.adapted)
        return Held(
            training={"protected entries": keys, "one product": 8.0 * max(a * b for a, b in shape.adapted)},
            client={"earlier subspaces": (stages - 1) * subspace_bytes(self.config, shape, "per_subspace")},
        )

    def prepare(self, session: Session) -> None:
        earlier = [session.constants[n] for n in sorted(session.constants, key=lambda n: int(n.rpartition("-")[2]))]
        session.adapters.add_frozen(earlier)
        for name, a in session.adapters.trainable.items():
            if A in name and earlier:
                pairs = [(tensors[name.replace(A, B)], tensors[name]) for tensors in earlier]
                session.notes[name] = key_positions(pairs, self.options.keys, a.device)

    def penalty(self, session):
        penalty, trained = 0.0, session.adapters.trainable
        layers = sum(A in name for name in trained)
        for name, keys in session.notes.items():
            summed = _AbsoluteSum.apply(trained[name.replace(A, B)], trained[name], *keys)
            penalty = penalty + self.options.strength / layers * summed
        return penalty

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """Every subspace with weight one."""
        return np.ones((len(features), len(names)), dtype=np.float32)


@torch.no_grad()
def key_positions(
    pairs: list[tuple[np.ndarray, np.ndarray]], share: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions ``(2, K)`` of the largest entries of each |B A| of one layer, and the weight of each in their mean.

    Args:
        pairs: B ``(d_out, r)`` and A ``(r, d_in)`` of every stage; one whose product is zero has no keys.
        share: of all entries, for every stage.
    """
    chosen, width = [], pairs[0][1].shape[1]
    for b, a in pairs:
        size = (torch.from_numpy(b).to(device) @ torch.from_numpy(a).to(device)).abs().flatten()
        if size.any():
            chosen.append(size.topk(max(1, int(share * len(size))), sorted=False).indices)
    every = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=device)
    flat, counts = every.unique(return_counts=True)
    return torch.stack([flat // width, flat % width]), counts / max(1, len(every))


class _AbsoluteSum(torch.autograd.Function):
    """sum_k w_k |(B A)_k| over positions k, with products formed at these only, some at a time."""

    @staticmethod
    def forward(ctx, b, a, positions, weights):
        signs, total, columns = torch.empty_like(weights), weights.new_zeros(()), a.T
        for start in range(0, len(weights), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows, places = positions[:, part]
            products = (b[rows] * columns[places]).sum(1)
            signs[part] = weights[part] * products.sign()
            total = total + (weights[part] * products.abs()).sum()
        ctx.save_for_backward(b, a, positions, signs)
        return total

    @staticmethod
    def backward(ctx, gradient):
        b, a, positions, signs = ctx.saved_tensors
        slope = torch.sparse_coo_tensor(
            positions, signs, (len(b), a.shape[1]), is_coalesced=True, check_invariants=False
        )
        return gradient * (slope @ a.T), gradient * (slope.T @ b).T, None, None
