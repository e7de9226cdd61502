"""DISCO: dynamic knowledge organisation (DKO) and subspace-selective activation (SSA).

Paper: "Federated Continual Instruction Tuning" (arXiv 2503.12897). The server discovers tasks from
the text features of clients' instructions and keeps one LoRA subspace for each; at inference every
question mixes the subspaces by its similarity to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fcit.config import RunConfig, Section
from fcit.io.trees import Tensors
from fcit.methods.base import INVARIANTS, MORE_FACTORS, Factory, Method, Pair, ServerState, Stats, one_subspace
from fcit.methods.knowledge_cache import KnowledgeCache, average_linkage, cosine


def softmax_mix(similarity: np.ndarray, temperature: float, slots: int = 0) -> np.ndarray:
    """alpha = softmax(s / epsilon) per row of ``(N, E)`` (paper: epsilon = 0.05).

    With ``slots`` > E, slots - E empty ones enter the softmax with s = 0 and are dropped from the result, whose rows
    then sum to less than one: the remaining weight is that of the backbone without adapter.
    """
    subspaces = similarity.shape[1]
    if slots > subspaces:
        similarity = np.pad(similarity, ((0, 0), (0, slots - subspaces)))
    scaled = similarity / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (scaled / scaled.sum(axis=1, keepdims=True))[:, :subspaces].astype(np.float32)


def argmax_mix(similarity: np.ndarray) -> np.ndarray:
    """Weight one for the most similar subspace of each row of ``(N, E)``; ties go to the first."""
    best = np.zeros_like(similarity, dtype=np.float32)
    best[np.arange(len(best)), similarity.argmax(axis=1)] = 1.0
    return best


@dataclass(frozen=True)
class _Cluster:
    """Similar new (client, shard) pairs: their feature sum ``(d,)`` and number of records."""

    pairs: list[Pair]
    total: np.ndarray
    count: int

    @classmethod
    def of(cls, stats: dict[Pair, Stats]) -> _Cluster:
        return cls(list(stats), np.sum([s.total for s in stats.values()], axis=0), sum(s.count for s in stats.values()))

    @property
    def token(self) -> np.ndarray:
        return self.total / self.count


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
    are set to 0), alpha_i = [i = argmax_j cos(f, mu_j)] (``argmax``); tokens from text, images or both (see
    :class:`fcit.models.identity.IdentityEncoder`). ``oracle`` is a reference: alpha_i = 1 for the subspace that
    was trained on most records of the question's true task, which inference is given.

    Errors of the reference code that are not repeated:

    - tokens and counts are float32/64 and whole numbers, not bfloat16 (counts above 256 were rounded);
    - a returning token is updated by the true mean (a misplaced parenthesis froze it);
    - the subspace is chosen once per client and shard, before training, by one threshold for all
      rounds (there: per mini-batch, the last batch reported, later rounds without a threshold);
    - membership follows (client, shard), not the position in the round's list;
    - clusters are disjoint, so weights always sum to one; two new tasks of one round open two
      subspaces at once (there: they trained the same slot and one first round was lost);
    - every subspace starts from fresh tensors, also in the first stage;
    - capacity grows on demand instead of a preset number of slots;
    - questions are routed one by one, whatever the batch;
    - the softmax is over existing subspaces. There it is over all preset slots (8, capability-related 4), empty ones
      with s = 0: for a question far from every token they take most of the weight, which then falls to the backbone
      without adapter. ``empty_slots: 8`` or ``4`` reproduces that.

    ``min_records`` is our addition; 1 disables it. A few records may be worded unlike the rest of their task, and a
    client with no others would open a subspace that no other client ever trains. A new cluster that matches no token
    and holds fewer than ``min_records`` records joins the most similar subspace instead, existing or opened in this
    round, and its records enter that token. If there is none, the new cluster with the most records opens one (ties:
    the first). Assignments are permanent. (The reference merges single clients with less than 0.1 % of the first
    round's records into the most similar cluster, in that round only.)
    """

    class Options(Section):
        """``threshold`` is the paper's tau, ``temperature`` its epsilon.

        tau = 0.9 is meant for text; cosines of images and of both lie elsewhere and need their own.
        """

        #: Earlier runs, without ``min_records``, let every client open a subspace.
        EARLIER: ClassVar[dict[str, Any]] = {"min_records": 1}

        threshold: float = Field(0.9, gt=-1, le=1, description="cosine at which a client joins a known subspace (tau)")
        temperature: float = Field(0.05, gt=0, description="of the softmax over similarities at inference (epsilon)")
        mix: Literal["softmax", "concat", "cosine", "argmax", "oracle"] = "softmax"
        token: Literal["text", "image", "both"] = "text"
        empty_slots: int = Field(
            0, ge=0, description="slots of the softmax in all, empty ones with similarity 0 (published code: 8 or 4)"
        )
        min_records: int = Field(
            4, ge=1, description="records that a new cluster of clients needs to open a subspace; 1: as published"
        )
        negligible: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="weights of a question below it count as 0, except its largest, and subspaces that no question "
            "of a batch needs are left out, so that an answer costs the same however many tasks there were; 0: none is",
        )

        @model_validator(mode="after")
        def _slots_of_a_softmax(self) -> Self:
            if self.empty_slots and self.mix != "softmax":
                raise ValueError(
                    f"empty_slots: {self.empty_slots} is for mix: softmax, and mix is {self.mix!r}; leave it out, or "
                    "choose mix: softmax"
                )
            return self

    name = "disco"
    family = "routing"
    summary = "server-side knowledge cache, one subspace per discovered task, mixed per question"
    by_record = True
    factors = MORE_FACTORS
    mixes_ranks = True
    answers = "Each question mixes the subspaces by how much it resembles what they were trained on."
    needs_stats = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.identity = self.options.token
        self.negligible = self.options.negligible
        if self.options.mix in ("concat", "cosine") or self.options.empty_slots:
            self.invariants = INVARIANTS - {"mix-sums-to-one"}
        if self.options.mix == "oracle":
            self.needs_task_at_inference, self.group = True, "reference"

    def _cache(self, state: ServerState) -> KnowledgeCache:
        """A view on the lists in the server's state: additions are kept there."""
        return KnowledgeCache(**state.memory.setdefault("cache", {"names": [], "sums": [], "counts": []}))

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        new = sorted(pair for pair in set(pairs) if pair not in state.assigned)
        if not new:
            return
        cache, small = self._cache(state), list[_Cluster]()
        tokens = np.stack([stats[pair].total / stats[pair].count for pair in new])
        counts = [stats[pair].count for pair in new]
        for members in average_linkage(tokens, counts, self.options.threshold):
            cluster = _Cluster.of({new[i]: stats[new[i]] for i in members})
            name = cache.match(cluster.token, self.options.threshold)
            if name is None and cluster.count < self.options.min_records:
                small.append(cluster)
            else:
                self._place(state, cache, cluster, name, make)
        for cluster in sorted(small, key=lambda c: -c.count):
            self._place(state, cache, cluster, cache.match(cluster.token, -np.inf), make)

    @staticmethod
    def _place(state: ServerState, cache: KnowledgeCache, cluster: _Cluster, name: str | None, make: Factory) -> None:
        """Assign a cluster to the subspace ``name``, or to a new one (None)."""
        if name is None:
            name = str(len(state.subspaces))
            state.subspaces[name] = make(name)
        cache.add(name, cluster.total, cluster.count)
        state.assigned.update(dict.fromkeys(cluster.pairs, name))

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
            trained = values["trained"].get(values["task"])
            return np.tile(np.array([name == trained for name in names], dtype=np.float32), (len(features), 1))
        similarity = cosine(features, tensors["tokens"][[values["names"].index(name) for name in names]])
        if self.options.mix == "cosine":
            return np.maximum(similarity, 0.0).astype(np.float32)
        if self.options.mix == "argmax":
            return argmax_mix(similarity)
        return softmax_mix(similarity, self.options.temperature, self.options.empty_slots)
