"""Which rank each client trains adapters at (``adapter.ranks``), by client id, the same for every method."""

from __future__ import annotations

from fcit import seeding
from fcit.config import RunConfig


def assigned(config: RunConfig, client: int) -> int:
    """The rank of a client: a function of (seed, client) and the configuration alone.

    Of shares, each client draws for itself, so that it keeps its rank when the pool grows; in a small pool the shares
    are met on average only.
    """
    ranks = config.adapter.ranks
    if ranks is None:
        return config.adapter.rank
    if isinstance(ranks, int):
        return ranks
    if isinstance(ranks, list):
        return ranks[client]
    left = float(seeding.generator(config.seed, "rank", client).random())
    for rank, share in sorted(ranks.items()):
        left -= share
        if left < 0:
            return rank
    return max(ranks)  # shares that sum to a little less than one


def expected(config: RunConfig) -> float:
    """The mean rank of the run's clients: of the list, or as the shares say."""
    ranks = config.adapter.ranks
    if isinstance(ranks, list):
        return sum(ranks) / len(ranks)
    if isinstance(ranks, dict):
        return sum(rank * share for rank, share in ranks.items())
    return config.adapter.rank if ranks is None else ranks


def largest(config: RunConfig) -> int:
    """The largest rank that a client of the run can be given."""
    ranks = config.adapter.ranks
    if ranks is None or isinstance(ranks, int):
        return config.adapter.rank if ranks is None else ranks
    return max(ranks)


def smallest(config: RunConfig) -> int:
    """The smallest rank that a client of the run can be given."""
    ranks = config.adapter.ranks
    if ranks is None or isinstance(ranks, int):
        return config.adapter.rank if ranks is None else ranks
    return min(ranks)
