"""ProgLoRA: a LoRA per stage, all of them weighted by how a question's words and images fit their keys.

Paper: Yu et al., "Progressive LoRA for Multimodal Continual Instruction Tuning" (Findings of ACL 2025,
aclanthology.org/2025.findings-acl.143), in its released code; its text was not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from fcit.config import Section
from fcit.io.trees import Tensors
from fcit.methods.base import INVARIANTS, Factory, Pair, QuestionBatch, ServerState, Session, Stats
from fcit.methods.per_stage import PerStage
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import ROUTING, Layout
from fcit.models.reading import largest

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

_KEY = f"{ROUTING}key"


class ProgLoRA(PerStage):
    """The LoRA of a stage is trained beside those of earlier stages, which are frozen; one softmax weighs them all.

    u = maximum over the question's input embeddings, images among them, number by number
    z_i = LN_i(SiLU(W2_i W1_i u)),   w = softmax_i(k_i z_i / sqrt(d))
    y = W0 x + s sum_{i<=t} w_i B_i A_i x,   the same w in all layers

    Stage t trains A_t, B_t, its key k_t (d, the width of a token) and the network in front of it, W1_t (``hidden``, d),
    W2_t (d, ``hidden``) and the norm LN_t, which begins as the stage before left it. In the first stage there is one
    LoRA, w is 1 and neither key nor network has a gradient. Clients get earlier LoRAs once.

    Where the released code differs, and why this does not follow it (``routing: released`` does):

    - Logits of earlier keys and the newest key's are each lowered by their own maximum before they are joined, over all
      records of a batch, so that weights depend on the batch; of one record alone the newest logit is 0 whatever its
      key. ``released``: in training the maxima are over the records that pass through the model together
      (``training.micro_batch``); at inference over each question's own, as its questions are answered one by one.
    - Every key meets the newest network, and those of earlier stages are kept and never used: what a question weighs
      under an old key changes with every stage. Here an old key meets the network that it was trained with.
    - In generation u is the newest token's embedding, so that weights change within an answer. Here they are those of
      the question for all of it, and in training those of the question, too (its maximum there is over the answer and
      padding as well, which ``released`` here leaves out).

    Our initial values are torch's for linear layers and norms; there they are N(0, 1), except the key. The paper's task
    recall is not in that code, and not here.
    """

    class Options(Section):
        """Keys under ``method:``."""

        hidden: int = Field(100, ge=1, description="hidden numbers of the network before a key; 100: the released code")
        routing: Literal["shared", "released"] = Field(
            "shared", description="shared: one softmax, once for a question; released: with the faults of that code"
        )

    name = "proglora"
    family = "expansion"
    summary = "a LoRA per stage, all weighted by how a question's words and images fit their keys"
    answers = "Each question mixes all subspaces by how its words and images fit their keys."
    mixes_ranks = True
    by_record = False  # with routing: released a record's loss depends on those beside it
    invariants = INVARIANTS - {"mix-sums-to-one"}

    @property
    def layout(self) -> Layout:
        return Layout(keyed=self.options.hidden)

    @property
    def _released(self) -> bool:
        return bool(self.options.routing == "released")

    def held(self, shape: Shape, stages: int) -> Held:
        key = 4.0 * shape.width * (2 * self.options.hidden + 3)  # k, W1, W2 and the norm's two vectors
        earlier = subspace_bytes(self.config, shape) + key
        keys = {"keys and networks": stages * key}
        return Held(device=keys, client={"earlier subspaces": (stages - 1) * earlier}, server=keys)

    # ------------------------------------------------------------------ client

    def prepare(self, session: Session) -> None:
        earlier = [session.constants[n] for n in sorted(session.constants, key=lambda n: int(n.rpartition("-")[2]))]
        session.adapters.add_frozen(earlier)

    def loss(self, session, examples, features):
        earlier = session.adapters.keys.each if session.constants else []
        keys = [*earlier, session.adapters.trainable]
        with session.adapters.weighed(lambda embeds, places: self._logits(keys, largest(embeds, places), None)):
            return super().loss(session, examples, features)

    # ------------------------------------------------------------------ server

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        name, before = self.common(state.stage), [*state.subspaces.values()][-1:]
        new = name not in state.subspaces
        super().assign(state, pairs, stats, make)
        for earlier in before if new else ():
            network = {n: t for n, t in earlier.items() if n.startswith(ROUTING) and n != _KEY}
            state.subspaces[name] = {**state.subspaces[name], **network}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        return {f"frozen-{n}": tensors for n, tensors in state.subspaces.items() if int(n) < state.stage}

    # ------------------------------------------------------------------ inference

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """Every subspace takes part; how much is known when a question's embeddings are."""
        return np.ones((len(features), len(names)), dtype=np.float32)

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        if mix is None:
            return super().answer(questions, mix)
        keys = questions.adapters.keys.each
        with questions.adapters.weighed(
            lambda embeds, places: self._logits(keys, largest(embeds, places), 1), anew=self._released
        ):
            return super().answer(questions, mix)

    def _logits(self, keys: Sequence[Mapping[str, torch.Tensor]], u: torch.Tensor, over: int | None) -> torch.Tensor:
        """What the softmax is of ``(B, E)``, for u ``(B, d)``.

        Args:
            keys: of every stage, with the network in front of it.
            over: dimensions of the maxima of ``released``; None: all.
        """
        networks = [keys[-1]] * len(keys) if self._released else keys
        scores = [_before(network, u.float()) @ key[_KEY] for network, key in zip(networks, keys, strict=True)]
        logits = torch.stack(scores, dim=1) / math.sqrt(u.shape[1])
        if not self._released or len(keys) == 1:
            return logits
        groups = logits[:, :-1], logits[:, -1:]
        return torch.cat([g - (g.amax() if over is None else g.amax(over, keepdim=True)) for g in groups], dim=1)


def _before(network: Mapping[str, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
    """z ``(B, d)`` of u ``(B, d)``."""
    down, up, weight, bias = (network[f"{ROUTING}{part}"] for part in ("down", "up", "norm.weight", "norm.bias"))
    hidden = functional.silu(functional.linear(functional.linear(u, down), up))
    return functional.layer_norm(hidden, hidden.shape[-1:], weight, bias)
