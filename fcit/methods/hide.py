"""HiDe-LLaVA: task-specific LoRAs in the last block, chosen by image and text, and one fused LoRA below it.

Paper: Guo et al., "HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal Large Language
Model" (ACL 2025, arXiv 2503.12941), in its released code and a third-party note of the paper; its text was not read.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fcit.config import RunConfig, Section
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Pair, ServerState, Stats
from fcit.methods.disco import softmax_mix
from fcit.methods.knowledge_cache import cosine, count_once
from fcit.methods.per_stage import PerStage
from fcit.models.layout import Layout, is_factor, last_block


class HiDe(PerStage):
    """A LoRA per stage, trained alone on the backbone; every block but the last uses all of them fused.

    last block:   y = W0 x + s sum_i d_i B_i A_i x,   d = softmax(cos(f, a_i) / temperature)
    below it:     y = W0 x + s sum_i B_i A_i x                     (fusion: stack)
                  y = W0 x + s (sum_i B_i) (sum_i A_i) x           (fusion: cross)

    Tasks differ in the last block most, which is why it alone is routed. ``stack`` is the sum of experts that the
    paper's formula reads as; the released code adds A's and B's by themselves, which has all cross terms B_i A_j, and
    the published figures come from that.

    f joins the unit features of text and image, and the anchor a_i is their mean over the records of stage i (exact
    sums over clients; each client and shard counts once in a stage, also if it returns from an earlier one). cos(f,
    a_i) weighs the two cosines by the lengths of the anchor's two parts; the paper halves the sum. As released code the
    anchors do not start from noise here, and questions are routed one by one whatever the batch.
    """

    class Options(Section):
        """Keys under ``method:``."""

        fusion: Literal["stack", "cross"] = Field(
            "stack", description="stack: the exact sum of products; cross: with all cross terms, as released"
        )
        temperature: float = Field(0.1, gt=0, description="of the softmax over anchors; 0.1: the released code")

    name = "hide"
    family = "routing"
    summary = "a LoRA per stage: mixed by text and image in the last block, fused below"
    mixes_ranks = True
    answers = (
        "In the last block each question mixes the subspaces by how much its text and image resemble what they were "
        "trained on; below it, all act as one."
    )
    by_record = True
    needs_stats = True
    identity = "both"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        if self.options.fusion == "cross":
            self.answers = f"{self.answers} That one is in the newest subspace; the others hold their last block only."

    @property
    def layout(self) -> Layout:
        return Layout(routed="last")

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        super().assign(state, pairs, stats, make)
        count_once(state, pairs, stats)

    def end_stage(self, state: ServerState, stage: int) -> None:
        """With ``cross`` the newest subspace holds the sums below the last block, earlier ones no tensors there."""
        name, earlier = str(stage), [n for n in state.subspaces if int(n) < stage]
        if self.options.fusion == "stack" or name not in state.subspaces or not earlier:
            return
        newest = dict(state.subspaces[name])
        routed = last_block(n for n in newest if is_factor(n))  # a projector may have numbers, too
        for tensor in (n for n in newest if is_factor(n) and n not in routed):
            newest[tensor] = newest[tensor] + state.subspaces[earlier[-1]][tensor]
        before = state.subspaces[earlier[-1]]
        state.subspaces[earlier[-1]] = {n: t for n, t in before.items() if n in routed or not is_factor(n)}
        state.subspaces[name] = newest

    def knowledge(self, state: ServerState) -> tuple[dict[str, list[str]], Tensors]:
        sums = state.memory.get("sums", {})
        names = [name for name in state.subspaces if name in sums]
        if not names:
            return {"names": []}, {}
        return {"names": names}, {"anchors": np.stack([_unit(sums[name]) for name in names])}

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        values, tensors = knowledge
        mix = np.zeros((len(features), len(names)), dtype=np.float32)
        known = [name for name in names if name in values["names"]]  # a stage of clients all known before has no anchor
        if known:
            anchors = tensors["anchors"][[values["names"].index(name) for name in known]]
            chosen = softmax_mix(cosine(features, anchors), self.options.temperature)
            mix[:, [names.index(name) for name in known]] = chosen
        return mix


def _unit(total: np.ndarray) -> np.ndarray:
    """The direction of a sum of features, float32."""
    return (total / (np.linalg.norm(total) or 1.0)).astype(np.float32)
