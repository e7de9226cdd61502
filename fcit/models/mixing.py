"""Leaving out subspaces of the mixture whose weights are negligible for every question of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fcit.models.decoding.greedy import bucket
from fcit.models.layout import A

#: Factors of the stacked adapter by saved name: A ``(E r, d_in)``, B ``(d_out, E r)``.
Factors = Mapping[str, nn.Parameter]


def thinned(weights: torch.Tensor, negligible: float) -> torch.Tensor:
    """Weights ``(B, E)`` of which those below ``negligible`` are 0, except each question's largest.

    It depends on no other question of the batch.
    """
    size = weights.abs()
    return torch.where(size >= size.amax(1, keepdim=True).clamp(max=negligible), weights, 0.0)


def needed(weights: torch.Tensor) -> list[int] | None:
    """The subspaces that answer a batch, in their order; None for all.

    Args:
        weights: of every question ``(B, E)``. Subspaces whose weight is 0 for all of them are left out. Some stay, so
            that the number of the others is one of few (1, 2, 3, 4, 6, 8, 12, ...), for each of which a step is
            captured once.
    """
    most = weights.abs().amax(0)
    count = bucket(max(1, int((most > 0).sum())))
    if count >= len(most):
        return None
    return sorted(most.argsort(descending=True, stable=True)[:count].tolist())


class Selection:
    """The factors of some subspaces in the place of all, at addresses that depend on their number only."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._buffers: dict[tuple[int, str], torch.Tensor] = {}

    def forget(self) -> None:
        """Give the memory back: the factors have other shapes or another number format from now on."""
        self._buffers.clear()

    @contextmanager
    def of(self, factors: Factors, kept: Sequence[int]) -> Iterator[None]:
        """Inside, layers compute with the columns of the subspaces ``kept`` only."""
        whole = {name: parameter.data for name, parameter in factors.items()}
        device = next(iter(whole.values())).device
        ranks = (
            torch.tensor(kept, device=device)[:, None] * self._rank + torch.arange(self._rank, device=device)
        ).flatten()
        try:
            for name, parameter in factors.items():
                selected = whole[name].index_select(0 if A in name else 1, ranks.to(parameter.device))
                parameter.data = self._buffers.setdefault((len(kept), name), selected).copy_(selected)
            yield
        finally:
            for name, parameter in factors.items():
                parameter.data = whole[name]
