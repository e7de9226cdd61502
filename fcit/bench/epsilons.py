"""Differential privacy in a leaderboard: a column for each kind of epsilon, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Head of a column -> key of ``results.json``, and what its epsilon is of.
KINDS = {
    "epsilon": (
        "privacy",
        "differential privacy of whole clients (a contribution replaced by zero) at delta {deltas}, the largest over "
        "seeds; of what is trained, not of descriptions, losses and scores. A row without is not private.",
    ),
    "record epsilon": (
        "record_privacy",
        "differential privacy of single records (one added or removed) at delta {deltas}, of the client and seed where "
        "it is largest; of what clients train, not of descriptions, losses and scores.",
    ),
    "token epsilon": (
        "token_privacy",
        "differential privacy of single records (one added or removed) at delta {deltas}, of the description of a "
        "shard, and of nothing else.",
    ),
}


def of_run(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The epsilons of a finished run, by the head of their column; None where it has none."""
    return {head: results.get(key, {}).get("epsilon") for head, (key, _) in KINDS.items()}


def sentences(head: str, results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What a column means, and rows whose noise protects no one.

    Args:
        results: of all runs that have this epsilon, with the label of their row.
    """
    key, meaning = KINDS[head]
    spent = [(label, values[key]) for label, values in results]
    deltas = ", ".join(f"{delta:g}" for delta in sorted({values["delta"] for _, values in spent}))
    public = ", ".join(dict.fromkeys(label for label, values in spent if values["public_noise"]))
    ways: dict[str, dict[str, None]] = {}
    for label, values in spent:
        ways.setdefault(values["amplification"], {})[label] = None
    amplified = "; ".join(way + f" ({', '.join(labels)})" * (len(ways) > 1) for way, labels in ways.items())
    nothing = f"{public}: the noise follows from the seed (privacy.reproducible_noise) and keeps nothing private."
    text = f"{head}: {meaning.format(deltas=deltas)} Amplification by sampling: {amplified}."
    return [text, *([nothing] if public else [])]
