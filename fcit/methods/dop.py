"""DOP: a merge that keeps both the old and the new update where they matter, by two projections.

Paper: Yang et al., "Continual Model Merging without Data: Dual Projections for Balancing Stability and Plasticity"
(NeurIPS 2025, OpenReview zD5cUX67b9; not on arXiv under a number we know); code: tanganke/fusion_bench.
"""

from __future__ import annotations

import torch
from pydantic import Field

from fcit.fedopt.products import one_thread
from fcit.methods.base import ServerState
from fcit.methods.merging import Merge, Merging


class DOP(Merging):
    """One adapter; after each stage the server looks for a merge M near the old O and the new N (without data).

    minimise   a L_O(M) + (1 - a) L_N(M)
    L_W(M) = ||S U^T (M - W)||_F^2 + ||(M - W) V S||_F^2,   W = U S V^T

    L_O is stability, L_N plasticity: a difference from an update weighs as much as the directions of that update do.
    Adam starts from (O + N) / 2. In each step the two gradients, each divided by its loss, give the weight a' of their
    shortest convex combination (MGDA, Désidéri 2012), and a <- momentum a + (1 - momentum) a'.

    Ours: the published code keeps the directions that hold 99.999 % of the singular values, here all take part; the
    weight a' of two gradients is computed in closed form, there by Frank-Wolfe iterations; steps are taken in the
    coordinates of the core, with a rate relative to the larger spectral norm of O and N, since the published 1e-4 is
    meant for weights of whole models; the merge is truncated to the adapter's rank.
    """

    class Options(Merging.Options):
        """``balance`` is the published code's alpha, ``momentum`` its ema_beta."""

        steps: int = Field(200, ge=1, description="of Adam in every layer; 200: the published code")
        lr: float = Field(0.01, gt=0, description="of Adam, relative to the larger spectral norm (ours)")
        balance: float = Field(0.8, ge=0, le=1, description="a at the start; 0.8: the published code")
        adaptive: bool = Field(True, description="whether a follows the gradients (MGDA); false: it stays")
        momentum: float = Field(0.999, ge=0, lt=1, description="of a; 0.999: the published code")

    name = "dop"
    family = "merging"
    summary = "a stage's update merged by the server, held near old and new in the directions of each"

    @one_thread()
    def _merge(self, state: ServerState, layers: dict[str, Merge]) -> dict[str, torch.Tensor]:
        if "merged" not in state.memory:
            return {name: layer.new for name, layer in layers.items()}
        return {name: self._between(layer.old, layer.new) for name, layer in layers.items()}

    def _between(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """M ``(m, n)`` of one layer."""
        size = max(float(torch.linalg.matrix_norm(core, 2)) for core in (old, new))
        if not size:
            return old
        targets = [core / size for core in (old, new)]
        merged = torch.nn.Parameter((targets[0] + targets[1]) / 2)
        optimizer, weight = torch.optim.Adam([merged], lr=self.options.lr), self.options.balance
        for _ in range(self.options.steps):
            slopes = [_loss_and_gradient(merged.detach(), target) for target in targets]
            if self.options.adaptive:
                share = _shortest(*(gradient / max(loss, 1e-30) for loss, gradient in slopes))
                weight = self.options.momentum * weight + (1 - self.options.momentum) * share
            merged.grad = weight * slopes[0][1] + (1 - weight) * slopes[1][1]
            optimizer.step()
        return merged.detach() * size


def _loss_and_gradient(merged: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    """L_W(M) and its gradient: U S^2 U^T = W W^T and V S^2 V^T = W^T W, so no decomposition is needed."""
    apart = merged - target
    slope = target @ (target.T @ apart) + (apart @ target.T) @ target
    return float((apart * slope).sum()), 2 * slope


def _shortest(first: torch.Tensor, second: torch.Tensor) -> float:
    """The weight a in [0, 1] for which a g_1 + (1 - a) g_2 is shortest; one half of equal gradients."""
    apart = first - second
    square = float(apart.square().sum())
    return min(1.0, max(0.0, -float((apart * second).sum()) / square)) if square else 0.5
