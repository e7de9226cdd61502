"""MoELoRA: small LoRA experts in every layer behind a gate that weights them token by token.

Paper: Chen et al., "CoIN: A Benchmark of Continual Instruction Tuning for Multimodal Large Language
Models" (NeurIPS 2024, arXiv 2403.08350).
"""

from __future__ import annotations

from pydantic import Field

from fcit.config import Section
from fcit.methods.base import Method
from fcit.models.layout import Layout


class MoELoRA(Method):
    """One adapter of rank r as E experts of rank r / E, carried from stage to stage.

    y = W0 x + s sum_i g_i(x) B_i A_i x,   g(x) = softmax(W_g x) per token,   s = alpha / r

    No top-k, no balancing loss, no bias, a gate in every adapted layer. Gates travel and are averaged
    with the experts; their mean has a meaning because all clients start from the same gates. Nothing
    here protects the past. The reference draws a dropout mask per expert; here the experts of a layer
    share one.
    """

    class Options(Section):
        """``experts`` must divide ``adapter.rank``."""

        experts: int = Field(4, ge=2)

    name = "moelora"
    summary = "experts of small rank behind a token gate, one model stage after stage"
    #: An SVD of the summed product would mix the experts that the gate tells apart.
    factors = frozenset({"separate", "alternate", "frozen_a"})

    @property
    def layout(self) -> Layout:
        return Layout(experts=self.options.experts)
