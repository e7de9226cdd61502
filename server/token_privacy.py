"""What the descriptions of shards have spent of the records behind them; the noise is the clients'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fcit.config import RunConfig
from fcit.privacy import tokens
from fcit.privacy.accountant import Epsilon

#: What epsilon of tokens says nothing about; in ``results.json`` and in the report.
NOT_COVERED = (
    "how many records a shard has",
    "updates, losses, answers and scores: what else a client computes from the same records",
    "whole clients: the unit is one record",
    "other runs in which a client describes the same records",
)


def beside_clients(config: RunConfig) -> str:
    """What epsilon of whole clients says nothing about, as far as descriptions are concerned."""
    if config.privacy.tokens:
        return (
            "which subspace a client trains, counts of records, and descriptions of shards (their noise, with a token "
            "epsilon, is for single records and not for whole clients)"
        )
    return "descriptions of shards (DISCO's identity tokens and counts of records) and which subspace a client trains"


def beside_records(config: RunConfig) -> str:
    """The same of epsilon of records."""
    if config.privacy.tokens:
        return "descriptions of shards, which have a token epsilon of their own: for both together the two are added"
    return "descriptions of shards (DISCO's identity tokens) and which subspace a client trains"


def spent(config: RunConfig, described: Iterable[str]) -> dict[str, Any]:
    """For ``results.json``: epsilon of a record by the descriptions of the run.

    ``epsilon`` is that of a record in one shard, as where tasks are distinct data. ``epsilon_all`` composes all shards
    of the client that described most: for a record that is in each of them.

    Args:
        described: the shards that clients were asked to describe, as ``client/shard``, each once: a second description
            of the same records has the same noise.
    """
    privacy = config.privacy
    multiplier = tokens.multiplier(privacy)
    shards = max(Counter(name.partition("/")[0] for name in described).values(), default=0)
    one, every = (tokens.epsilon(multiplier, privacy.token_delta, count) for count in (min(shards, 1), shards))
    return {
        "unit": "record",
        "adjacency": "one record of a shard added or removed, its number of records aside (epsilon_replaced: replaced)",
        "amplification": "none: every record is described",
        "delta": privacy.token_delta,
        "noise_multiplier": _shown(multiplier),
        "clip": tokens.CLIP,
        "public_noise": privacy.reproducible_noise,
        **_bounds(one, ""),
        "shards": shards,
        **_bounds(every, "_all"),
        "not_covered": list(NOT_COVERED),
    }


def _bounds(epsilon: Epsilon, suffix: str) -> dict[str, float]:
    values = {"epsilon": epsilon.pld, "epsilon_rdp": epsilon.rdp, "epsilon_replaced": epsilon.replaced}
    return {f"{key}{suffix}": _shown(value) for key, value in values.items()}


def _shown(value: float) -> float:
    return float(f"{value:.6g}")
