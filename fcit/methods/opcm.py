"""OPCM: a stage's update is merged in directions orthogonal to what was merged before.

Paper: Tang et al., "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model
Merging" (NeurIPS 2025, arXiv 2501.09522); code: tanganke/fusion_bench.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from pydantic import Field

from fcit.fedopt.products import one_thread
from fcit.methods.base import ServerState
from fcit.methods.merging import Merge, Merging


class OPCM(Merging):
    """One adapter; after each stage the server merges the stage's update Delta_t (training-free, without data).

    M_t = (lambda_{t-1} M_{t-1} + P(Delta_t)) / lambda_t,   M_0 = Delta_0, lambda_0 = 1

    With M_{t-1} = U S V^T, P writes Delta_t in the singular coordinates of what is merged, U^T Delta_t V, sets the
    diagonal and the leading block to zero and writes it back. The block has the directions before the first with which
    the singular values reach the share ``keep`` of their sum. lambda_t gives M_t the mean norm of all updates so far,
    over all layers together:

        ||M_t||_F = (||Delta_0||_F + ... + ||Delta_t||_F) / (t + 1)

    Delta_t is the product that a stage has trained, minus the one it started from (zero with ``start: backbone``).

    As in the released code (a copy of it in circulation clears a copy of the diagonal and so merges by plain addition).
    Ours: the diagonal is cleared within the rank of M_{t-1} only, as the further singular vectors that the code
    completes it with are arbitrary; the merge is truncated to the adapter's rank (see ``kept`` in the report).
    """

    class Options(Merging.Options):
        """``keep`` is the paper's alpha."""

        keep: float = Field(0.5, ge=0, le=1, description="share of the singular values that later stages do not touch")

    name = "opcm"
    family = "merging"
    summary = "a stage's update merged by the server, orthogonal to what was merged before"

    @one_thread()
    def _merge(self, state: ServerState, layers: dict[str, Merge]) -> dict[str, torch.Tensor]:
        norms: list[float] = state.memory.setdefault("norms", [])
        if learnt := _norm(layer.increment for layer in layers.values()):  # else it would only shrink the merge
            norms.append(learnt)
        weight = state.memory.setdefault("lambda", 1.0)
        summed = {n: weight * layer.old + projected(layer, self.options.keep) for n, layer in layers.items()}
        size = _norm(summed.values())
        if not size or not norms:
            return summed
        state.memory["lambda"] = size / float(np.mean(norms))
        return {n: core / state.memory["lambda"] for n, core in summed.items()}


def projected(layer: Merge, keep: float) -> torch.Tensor:
    """P(Delta): the part of a layer's increment ``(m, n)`` that leaves the main directions of the merge alone."""
    u, s, vt = torch.linalg.svd(layer.old)
    rank = int((s > torch.finfo(torch.float32).eps * s[0]).sum()) if s[0] > 0 else 0
    if not rank:
        return layer.increment
    coordinates = u.T @ layer.increment @ vt.T
    coordinates.diagonal()[:rank] = 0
    before = int((s.cumsum(0) / s.sum() <= keep).sum())
    coordinates[:before, :before] = 0
    return u @ coordinates @ vt


def _norm(cores: Iterable[torch.Tensor]) -> float:
    """The Frobenius norm of all layers together."""
    return float(np.sqrt(sum(float(core.square().sum()) for core in cores)))
