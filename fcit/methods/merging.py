"""One adapter into which every stage's update is merged by the server: the common part of OPCM and DOP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field

from fcit.config import Section
from fcit.fedopt.cores import Cores
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import A, B, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


@dataclass(frozen=True)
class Merge:
    """One layer at the end of a stage, all in the same bases (:mod:`fcit.fedopt.cores`), the scale s left out.

    Attributes:
        old: what was merged before, ``(m, n)`` float64.
        new: what the stage has trained.
        base: what the stage started from.
    """

    old: torch.Tensor
    new: torch.Tensor
    base: torch.Tensor

    @property
    def increment(self) -> torch.Tensor:
        """Delta = B_t A_t - B_base A_base, of the products: not (B_t - B_base)(A_t - A_base)."""
        return self.new - self.base


class Merging(Method):
    """A stage is trained as plain fine-tuning; at its end its update is merged with what there is, without data.

    Merges are exact on low-rank cores; the result is then truncated to the adapter's rank, where the published codes
    keep dense matrices (the report says which share of its squares is kept). Gates and prompts do not occur. The
    projector, if it is trained, stays as the rounds left it: with ``adapter.projector: frozen`` all is merged.
    """

    class Options(Section):
        """Keys under ``method:``."""

        start: Literal["backbone", "merged"] = Field(
            "backbone",
            description="what a stage starts from: the backbone, as published, or what is merged so far (ours)",
        )

    refactors = True
    by_record = True
    mixes_ranks = True
    answers = "One adapter, into which all stages were merged, answers every question."

    def common(self, stage: int) -> str:
        return "0"

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        if state.memory.get("begun") != state.stage:
            state.memory["begun"] = state.stage
            fresh = make(str(state.stage))
            if "0" not in state.subspaces:
                state.subspaces["0"] = fresh
            elif self.options.start == "backbone":
                factors = {name: tensor for name, tensor in fresh.items() if is_factor(name)}
                state.subspaces["0"] = {**state.subspaces["0"], **factors}
        super().assign(state, pairs, stats, make)

    def held(self, shape: Shape, stages: int) -> Held:
        return Held(server={"what is merged": subspace_bytes(self.config, shape)})

    def end_stage(self, state: ServerState, stage: int) -> None:
        trained = state.subspaces.get("0")
        if trained is None:
            return
        before = state.memory.get("merged", {})
        cores = {n: _cores(n, before, trained) for n in trained if A in n}
        layers = {n: self._layer(core, bool(before)) for n, core in cores.items()}
        merged, missed, whole = dict[str, np.ndarray](), 0.0, 0.0
        for name, core in self._merge(state, layers).items():
            merged[name], merged[name.replace(A, B)], lost = cores[name].factored(core, trained[name])
            missed, whole = missed + lost, whole + float(core.square().sum())
        state.memory["merged"] = merged
        state.memory.setdefault("kept", []).append(1 - missed / whole if whole else 1.0)
        state.subspaces["0"] = {**trained, **merged}
        # Momentum of the server and turns of alternating factors belong to the factors that are gone.
        state.optimizers.pop("subspace-0", None)
        state.turns.pop("0", None)

    def _layer(self, core: Cores, merged: bool) -> Merge:
        old, new = core.products
        return Merge(old, new, old if merged and self.options.start == "merged" else torch.zeros_like(old))

    def _merge(self, state: ServerState, layers: dict[str, Merge]) -> dict[str, torch.Tensor]:
        """The merged product of every layer, in its bases; of the first stage what it has trained."""
        raise NotImplementedError

    def report(self, state: ServerState) -> list[dict[str, Any]]:
        kept = state.memory.get("kept", [])
        if not kept:
            return []
        stages = [str(stage + 1) for stage in range(len(kept))]
        values = [[round(share, 4) for share in kept]]
        return [
            {"title": "Share of a merge that its rank keeps", "rows": ["kept"], "columns": stages, "values": values}
        ]


def _cores(name: str, before: Tensors, trained: Tensors) -> Cores:
    """What was merged before (nothing: factors of zeros) and what is trained now, of the layer of an A."""
    a, b = trained[name], trained[name.replace(A, B)]
    old = (before[name.replace(A, B)], before[name]) if before else (np.zeros_like(b), np.zeros_like(a))
    return Cores([old, (b, a)])
