"""Two mixtures of experts side by side in every layer, each question with one expert of either (SMoLoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fcit.models.hooks import Gates, as_factor, layer_index, scale
from fcit.models.reading import Reading, average

#: Rows of a batch: the feature of each question's instruction ``(B, features)``, and what was decided for it.
INSTRUCTION, CHOICE = "instruction", "choice"


class Halves(Gates):
    """Two mixtures inside one adapter, of the first and the second half of its experts.

        g_v = one(R_v xbar),   g_i = one(R_i f),   g = [g_v, g_i]
        h = g A x,   (p, q) = softmax(s l_v B_v h_v, s l_i B_i h_i)   for every token
        y = W0 x + s (p B_v h_v + q B_i h_i)

    xbar is the mean of the layer's input over the question's tokens, before dropout, f the feature of its instruction
    (:data:`INSTRUCTION`), l_v and l_i the two rows of ``fusion``. Only numbers between A and B are multiplied: l B h is
    l (B h), and p and q are one number for a token.

    Args:
        layers: adapted layers by name.
        adapter: whose ``lora_A`` is gated.
        dead: see :func:`one`; routers then also decide at each token of an answer from this token alone.
    """

    def __init__(self, layers: Mapping[str, nn.Module], adapter: str, reading: Reading, dead: bool) -> None:
        names = enumerate(sorted(layers))
        super().__init__({name: _Halves(layers[name], adapter, reading, number, dead) for number, name in names})


def one(logits: torch.Tensor, dead: bool = False) -> torch.Tensor:
    """Weight one for the largest of each row ``(B, E)``, zero for the others; ties: the first.

    The gradient is that of the chosen softmax probability (straight through): a router learns how much its choice
    helped. ``dead``: it has none.
    """
    chosen = functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)
    if dead:
        return chosen
    probability = logits.softmax(dim=-1)
    return chosen + chosen * (probability - probability.detach())


class _Halves:
    """The two mixtures of one layer."""

    def __init__(self, layer: Any, adapter: str, reading: Reading, number: int, dead: bool) -> None:
        self.layer, self.adapter, self.reading, self.dead = layer, adapter, reading, dead
        self._place = layer_index(number, layer)
        #: R_v, R_i and l_v over l_i; empty in a layer that is not gated.
        self.visual = self.instruction = self.fusion = torch.empty(0)
        self._open: torch.Tensor | None = None
        layer.register_forward_pre_hook(self._read)
        layer.get_submodule(f"lora_A.{adapter}").register_forward_hook(self._multiply)

    def _read(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(self.visual) and self.adapter in module.active_adapters:
            self._open = self._choice(inputs[0])

    def _choice(self, x: torch.Tensor) -> torch.Tensor:
        """g ``(B, E)``."""
        rows, question = self.reading.rows, self.reading.question
        if question is None and not self.dead:
            return rows[CHOICE].index_select(1, self._place.to(rows[CHOICE].device))[:, 0]
        if question is None:
            question = x.new_ones(x.shape[:2])
        mean = as_factor(average(x, question), self.visual)
        feature = as_factor(rows[INSTRUCTION], self.instruction)
        logits = mean @ self.visual.T, feature @ self.instruction.T
        choice = torch.cat([one(half, self.dead) for half in logits], dim=-1)
        if CHOICE in rows:
            kept = rows[CHOICE]
            kept.index_copy_(1, self._place.to(kept.device), choice[:, None].to(kept))
        return choice

    def _multiply(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        choice, self._open = self._open, None
        if choice is None:  # another adapter of the layer is active
            return output
        rank, experts = output.shape[-1], choice.shape[-1]
        opened = scale(choice.repeat_interleave(rank // experts, dim=-1), output)
        b, factor = self.layer.lora_B[self.adapter].weight, self.layer.scaling[self.adapter]
        halves = as_factor(opened, self.fusion).unflatten(-1, (2, rank // 2))
        pulls = (self.fusion[:, None] @ b.to(self.fusion).unflatten(-1, (2, rank // 2)).transpose(0, 1))[:, 0]
        shares = (factor * halves * pulls).sum(-1).softmax(-1)
        return scale(shares.repeat_interleave(rank // 2, dim=-1), opened)
