"""DISCO's knowledge cache: identity tokens and their subspaces (dynamic knowledge organisation, server side)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fcit.methods.base import Pair, ServerState, Stats


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines between the rows of ``a (N, d)`` and ``b (M, d)``: ``(N, M)``; 0 for zero rows."""
    norm_a = np.linalg.norm(a, axis=1, keepdims=True)
    norm_b = np.linalg.norm(b, axis=1, keepdims=True)
    return (a / np.where(norm_a == 0, 1, norm_a)) @ (b / np.where(norm_b == 0, 1, norm_b)).T


def count_once(state: ServerState, pairs: Sequence[Pair], stats: Mapping[Pair, Stats]) -> None:
    """Add every pair's feature sum to that of the stage, once: ``state.memory["sums"][stage]``.

    A pair is described once in a run, so its sum is kept for the stages it returns in.
    """
    kept = state.memory.setdefault("described", {"pairs": [], "totals": []})
    for pair in sorted(set(pairs) & set(stats)):
        kept["pairs"].append(list(pair))
        kept["totals"].append(stats[pair].total)
    counted = state.memory.setdefault("counted", {"stage": -1, "pairs": []})
    if counted["stage"] != state.stage:
        counted |= {"stage": state.stage, "pairs": []}
    sums, stage = state.memory.setdefault("sums", {}), str(state.stage)
    for pair in sorted(set(pairs)):
        if list(pair) in kept["pairs"] and list(pair) not in counted["pairs"]:
            sums[stage] = sums.get(stage, 0.0) + kept["totals"][kept["pairs"].index(list(pair))]
            counted["pairs"].append(list(pair))


def average_linkage(tokens: np.ndarray, counts: Sequence[float], threshold: float) -> list[list[int]]:
    """Cluster tokens by count-weighted average linkage, disjointly.

    The similarity of two clusters is sum n_i n_j cos(i, j) / sum n_i n_j over their members; the
    most similar pair is merged while it reaches ``threshold`` (ties: the lowest indices first).

    Args:
        tokens: ``(N, d)``.
        counts: number of records of each token.

    Returns:
        Clusters in ascending order of their first member, members ascending.
    """
    weights = np.asarray(counts, dtype=np.float64)
    links = (cosine(tokens, tokens) * np.outer(weights, weights)).astype(
        np.float64
    )  # summed over two clusters' members
    # Of pairs (a, b) with a < b; a cluster is named by its first member, into which the others are merged.
    similar = np.where(np.tri(len(tokens), dtype=bool), -np.inf, links / np.outer(weights, weights))
    clusters = {i: [i] for i in range(len(tokens))}
    while len(clusters) > 1:
        a, b = map(int, np.unravel_index(similar.argmax(), similar.shape))
        if similar[a, b] < threshold:
            break
        clusters[a] += clusters.pop(b)
        weights[a] += weights[b]
        links[a] += links[b]
        links[:, a] += links[:, b]
        similar[b], similar[:, b] = -np.inf, -np.inf
        others = np.array(sorted(clusters.keys() - {a}), dtype=int)
        similar[np.minimum(a, others), np.maximum(a, others)] = links[a, others] / (weights[a] * weights[others])
    return [sorted(members) for members in clusters.values()]


@dataclass
class KnowledgeCache:
    """Identity tokens ``(E, d)`` float32 with their record counts; row i belongs to ``names[i]``.

    Capacity grows on demand. The reference keeps counts in bfloat16 and misplaces a parenthesis in
    the update of a returning token, which freezes it; here the mean is exact and counts are whole.
    """

    names: list[str] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> np.ndarray:
        """``(E, d)`` float32 mean features."""
        return np.stack([(s / n).astype(np.float32) for s, n in zip(self.sums, self.counts, strict=True)])

    def match(self, token: np.ndarray, threshold: float) -> str | None:
        """The most similar subspace if its cosine reaches the threshold (paper: tau = 0.9)."""
        if not self.names:
            return None
        similarity = cosine(token[None], self.tokens)[0]
        best = int(similarity.argmax())
        return self.names[best] if similarity[best] >= threshold else None

    def add(self, name: str, total: np.ndarray, count: int) -> None:
        """mu <- (n mu + sum) / (n + count), n <- n + count; float64 sums, so that the order does not matter."""
        total = np.asarray(total, dtype=np.float64)
        if name in self.names:
            row = self.names.index(name)
            self.sums[row] = self.sums[row] + total
            self.counts[row] += count
        else:
            self.names.append(name)
            self.sums.append(total)
            self.counts.append(count)
