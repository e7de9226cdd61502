"""MoELoRA: LoRA experts of small rank in every layer, weighted per token by a gate.

Paper: Chen et al., "CoIN: A Benchmark of Continual Instruction Tuning for Multimodal Large Language
Models" (NeurIPS 2024, arXiv 2403.08350).
"""

from __future__ import annotations

from pydantic import Field

from fcit.config import Section
from fcit.methods.base import Method
from fcit.models.layout import Layout


class MoELoRA(Method):
    """One adapter of rank r, divided into E experts of rank r / E and trained on all stages in turn.

    y = W0 x + s sum_i g_i(x) B_i A_i x,   g(x) = softmax(W_g x) per token,   s = alpha / r

    There is a gate without bias in every adapted layer, no top-k selection and no balancing loss. Gates are sent
    and averaged with the experts; their mean is meaningful because all clients start from the same gates. Earlier
    tasks are not protected. The reference draws a dropout mask per expert; here the experts of a layer share one.
    """

    class Options(Section):
        """``experts`` must divide ``adapter.rank``."""

        experts: int = Field(4, ge=2)

    name = "moelora"
    family = "routing"
    summary = "experts of small rank behind a token gate, one model stage after stage"
    by_record = True
    whole_rank = "its experts share out the rank, and the leading ranks are the first experts"
    #: An SVD of the summed product would mix the experts that the gate distinguishes.
    factors = frozenset({"separate", "alternate", "frozen_a"})

    @property
    def layout(self) -> Layout:
        return Layout(experts=self.options.experts)
