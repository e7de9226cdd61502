"""How adapters are weighted while a batch passes: by gates and routers, by keys, by weights that a method gives."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from fcit import config as configuration
from fcit.models.backbone import Backbone
from fcit.models.halves import CHOICE, INSTRUCTION, Halves
from fcit.models.hooks import PRIOR, Gates, Keys, Rows, TokenGates, scale
from fcit.models.layout import Layout
from fcit.models.reading import Weigh

#: peft's names of the adapter that is trained and of the one that subspaces are stacked into.
SLOT, MIX = "slot", "mix"


class Routed:
    """The part of :class:`fcit.models.adapters.Adapters` that routes.

    Attributes:
        keys: of the mixture that is loaded.
    """

    def __init__(self, backbone: Backbone, adapter: configuration.Adapter, layout: Layout) -> None:
        self.backbone, self.adapter, self.layout = backbone, adapter, layout
        self.keys = Keys()
        self._gates: dict[str, Gates] = {}
        backbone.reading.decides = layout.decides

    @property
    def _peft(self) -> Any:
        return self.backbone.model

    @property
    def _layers(self) -> dict[str, Any]:
        """Adapted layers by name."""
        modules = dict(self._peft.named_modules())
        return {n.removesuffix(".lora_A"): modules[n.removesuffix(".lora_A")] for n in modules if n.endswith(".lora_A")}

    def _gating(self, adapter: str) -> Gates:
        reading, layers = self.backbone.reading, self._layers
        if self.layout.gate == "token":
            return TokenGates(layers, adapter, reading.rows if adapter == MIX else None, self.layout.top)
        reading.kept[CHOICE] = len(layers), self.layout.experts
        return Halves(layers, adapter, reading, self.layout.gate == "dead-halves")

    @property
    def _token_gates(self) -> TokenGates:
        gates = self._gates[SLOT]
        assert isinstance(gates, TokenGates), "of experts that are weighted token by token"
        return gates

    def gate_use(self, top: int) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """Within :meth:`training`: counts how often each expert is among a token's ``top``, by its gate's name."""
        return self._token_gates.counting(top)

    def gated_by(self, prior: np.ndarray) -> AbstractContextManager[None]:
        """Inside, the mixture's token gates are blended with gates of the questions, see :class:`TokenGates`.

        Args:
            prior: ``(B, layers, experts)``, in the order of the layers' names; a row sums to its share of the blend.
        """
        return self.backbone.reading.given(PRIOR, torch.from_numpy(prior).to(self.backbone.device))

    def instructed(self, features: np.ndarray) -> AbstractContextManager[None]:
        """Inside, routers find the features ``(B, d)`` of the questions' instructions, see :class:`Halves`."""
        return self.backbone.reading.given(INSTRUCTION, torch.from_numpy(features).to(self.backbone.device))

    def weighed(self, logits: Weigh, anew: bool = False) -> AbstractContextManager[None]:
        """Inside, subspaces have weights that follow from a question's embeddings, once for its whole answer.

        They are the softmax of ``logits`` over subspaces; of a mixture, over those that :meth:`mixed` gives a weight.

        Args:
            logits: one column for each subspace of the mixture; within :meth:`training` for each that was added by
                :meth:`add_frozen`, then for the slot.
            anew: weights of an answer's next token follow from its newest one alone.
        """
        rank, rows = self.adapter.rank, self.backbone.reading.rows

        def columns(embeds: torch.Tensor, places: torch.Tensor) -> Rows:
            with torch.autocast(embeds.device.type, enabled=False):
                scores, mixed = logits(embeds, places), self._peft.active_adapter == MIX
                if mixed:
                    scores = scores.masked_fill(rows[MIX][:, ::rank] == 0, -torch.inf)
                weights = scores.softmax(dim=-1)
                if mixed:
                    return {MIX: weights.repeat_interleave(rank, dim=1)}
                # One column for the slot, whose rank may be smaller (``adapter.ranks``).
                return {MIX: weights[:, :-1].repeat_interleave(rank, dim=1), SLOT: weights[:, -1:]}

        return self.backbone.reading.weighed(columns, anew)

    def _scale(self, adapter: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        weights = self.backbone.answering.rows.get(adapter)
        return output if weights is None else scale(weights, output)
