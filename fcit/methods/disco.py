"""DISCO: dynamic knowledge organisation (DKO) and subspace-selective activation (SSA).

Paper: "Federated Continual Instruction Tuning" (arXiv 2503.12897). The server discovers tasks from
what clients' instructions look like and keeps one LoRA subspace for each; at inference every
question mixes the subspaces by how much it resembles them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from fcit.config import RunConfig, Section
from fcit.methods.base import INVARIANTS, Factory, Method, Pair, ServerState, Stats, Tensors, one_subspace
from fcit.methods.knowledge_cache import KnowledgeCache, average_linkage, cosine


def softmax_mix(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """alpha = softmax(s / epsilon) per row of ``(N, E)`` (paper: epsilon = 0.05)."""
    scaled = similarity / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)


def argmax_mix(similarity: np.ndarray) -> np.ndarray:
    """Weight one for the most similar subspace of each row of ``(N, E)``; ties go to the first."""
    best = np.zeros_like(similarity, dtype=np.float32)
    best[np.arange(len(best)), similarity.argmax(axis=1)] = 1.0
    return best


class Disco(Method):
    """One subspace per discovered task.

    DKO. A client's identity token is the mean frozen text-encoder feature of its instructions. New
    (client, shard) pairs of a round are clustered against each other; a cluster whose token reaches
    cosine tau with a cached token joins that subspace, any other opens a new one. Token and
    parameters are sample-weighted means:

        mu_g <- (n_g mu_g + sum_k n_k mu_k) / (n_g + sum_k n_k)
        theta_g <- sum_{k in g} n_k theta_k / sum_{k in g} n_k

    SSA. For a question with feature f: alpha = softmax(cos(f, mu) / epsilon),
    Delta W = s * sum_i alpha_i B_i A_i.

    Ablations of the paper: alpha_i = 1 (``concat``), alpha_i = cos(f, mu_i) (``cosine``; negative ones
    count as 0), alpha_i = [i = argmax_j cos(f, mu_j)] (``argmax``); tokens from text, images or both (see
    :class:`fcit.models.identity.Identity`). ``oracle`` is a reference: alpha_i = 1 for the subspace that
    was trained on most records of the question's true task, which inference is told.

    Faults of the reference code that are not repeated here:

    - tokens and counts are float32/64 and whole numbers, not bfloat16 (counts above 256 were rounded);
    - a returning token is updated by the true mean (a misplaced parenthesis froze it);
    - the subspace is chosen once per client and shard, before training, by one threshold for all
      rounds (there: per mini-batch, the last batch reported, later rounds without a threshold);
    - membership follows (client, shard), not the position in the round's list;
    - clusters are disjoint, so weights always sum to one; two new tasks of one round open two
      subspaces at once (there: they trained the same slot and one first round was lost);
    - every subspace starts from fresh tensors, also in the first stage;
    - capacity grows on demand instead of a preset number of slots;
    - questions are routed one by one, whatever the batch.
    """

    class Options(Section):
        """``threshold`` is the paper's tau, ``temperature`` its epsilon.

        tau = 0.9 is meant for text; cosines of images and of both lie elsewhere and need their own.
        """

        threshold: float = Field(0.9, gt=-1, le=1)
        temperature: float = Field(0.05, gt=0)
        mix: Literal["softmax", "concat", "cosine", "argmax", "oracle"] = "softmax"
        token: Literal["text", "image", "both"] = "text"

    name = "disco"
    summary = "server-side knowledge cache, one subspace per discovered task, mixed per question"
    needs_stats = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.identity = self.options.token
        if self.options.mix in ("concat", "cosine"):
            self.invariants = INVARIANTS - {"mix-sums-to-one"}
        if self.options.mix == "oracle":
            self.needs_task_at_inference, self.group = True, "reference"

    def _cache(self, state: ServerState) -> KnowledgeCache:
        """A view on the lists in the server's memory: what is added stays there."""
        return KnowledgeCache(**state.memory.setdefault("cache", {"names": [], "sums": [], "counts": []}))

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        new = sorted(pair for pair in set(pairs) if pair not in state.assigned)
        if not new:
            return
        cache = self._cache(state)
        tokens = np.stack([stats[pair].total / stats[pair].count for pair in new])
        counts = [stats[pair].count for pair in new]
        for members in average_linkage(tokens, counts, self.options.threshold):
            total = np.sum([stats[new[i]].total for i in members], axis=0)
            count = sum(counts[i] for i in members)
            name = cache.match(total / count, self.options.threshold)
            if name is None:
                name = str(len(state.subspaces))
                state.subspaces[name] = make(name)
            cache.add(name, total, count)
            for i in members:
                state.assigned[new[i]] = name

    def report(self, state: ServerState) -> list[dict[str, Any]]:
        cache = self._cache(state)
        if not cache.names:
            return []
        similar = cosine(cache.tokens, cache.tokens)
        values = [[round(float(v), 4) for v in row] for row in similar]
        return [
            {"title": "Cosines between identity tokens", "rows": cache.names, "columns": cache.names, "values": values}
        ]

    def active(self, state: ServerState) -> int:
        return one_subspace(state) if self.options.mix in ("argmax", "oracle") else super().active(state)

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        cache = self._cache(state)
        return {"names": cache.names}, {"tokens": cache.tokens} if cache.names else {}

    def route(self, names: list[str], knowledge: tuple[dict[str, Any], Tensors], features: np.ndarray) -> np.ndarray:
        values, tensors = knowledge
        if self.options.mix == "concat":
            return np.ones((len(features), len(names)), dtype=np.float32)
        if self.options.mix == "oracle":
            own = values["trained"].get(values["task"])
            return np.tile(np.array([name == own for name in names], dtype=np.float32), (len(features), 1))
        similarity = cosine(features, tensors["tokens"][[values["names"].index(name) for name in names]])
        if self.options.mix == "cosine":
            return np.maximum(similarity, 0.0).astype(np.float32)
        if self.options.mix == "argmax":
            return argmax_mix(similarity)
        return softmax_mix(similarity, self.options.temperature)
