"""What does not go together with clients of different ranks, in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config.record_checks import declared
from fcit.config.schema import RunConfig


def mixed(config: RunConfig) -> bool:
    """Whether clients may train at another rank than the run's."""
    adapter = config.adapter
    return any(value is not None for value in (adapter.ranks, adapter.min_rank, config.sites.min_rank))


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ranks that are valid by themselves but not together."""
    adapter, problems = config.adapter, []
    ranks = adapter.ranks
    given = [] if ranks is None else [ranks] if isinstance(ranks, int) else list(ranks)
    above = sorted({rank for rank in given if rank > adapter.rank})
    if above:
        problems.append(
            f"adapter.ranks: {above[0]} is more than adapter.rank ({adapter.rank}), which the server keeps of every "
            f"subspace; raise adapter.rank to {above[-1]}, or lower the clients' ranks"
        )
    if isinstance(ranks, list) and len(ranks) != config.federation.clients:
        problems.append(
            f"adapter.ranks: a list of {len(ranks)} ranks, and federation.clients is {config.federation.clients}; give "
            "one for each client, or shares, e.g. {4: 0.5, 8: 0.5}"
        )
    least = {"adapter.min_rank": adapter.min_rank, "sites.min_rank": config.sites.min_rank}
    for key, rank in least.items():
        if rank is not None and rank > min([*given, adapter.rank]):
            problems.append(
                f"{key}: {rank} is more than the smallest rank of the run ({min([*given, adapter.rank])}); lower it"
            )
    if adapter.min_rank is not None and not registry.resolve("factors", config.factors).prunes:
        problems.append(
            f"adapter.min_rank: {adapter.min_rank} has no effect with factors: {config.factors!r}, with which clients "
            "keep their rank; choose factors: hetlora, or leave it out"
        )
    if mixed(config) and config.centralised:
        problems.append(
            f"{_what(config)} is about several clients, and setting: 'centralised' has one; leave it out, or choose "
            "setting: homogeneous"
        )
    return problems


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods, optimisers and protections that need every client's tensors to be of one shape."""
    if not mixed(config):
        return []
    problems, what = [], _what(config)
    if not registry.resolve("factors", config.factors).mixes_ranks:
        able = [name for name in sorted(registry.FACTORS) if registry.resolve("factors", name).mixes_ranks]
        problems.append(
            f"{what} gives clients different ranks, which factors: {config.factors!r} is not made for; choose factors: "
            f"{', '.join(able)}, or leave the ranks out"
        )
    if method.pooled:
        problems.append(
            f"{what} is about several clients, and method: {config.method['name']!r} pools all data at one "
            "participant; leave the ranks out"
        )
    elif not _able(type(method)):
        reason = method.whole_rank or "the class of its client hooks does not declare mixes_ranks"
        able = [name for name in sorted(registry.METHODS) if _able(registry.resolve("method", name))]
        problems.append(
            f"{what} gives clients different ranks, and method: {config.method['name']!r} does not go with that: "
            f"{reason}; choose one of {', '.join(able)}, or leave the ranks out"
        )
    if fedopt.sums():
        problems.append(
            f"{what} gives clients different ranks, and fedopt: {config.fedopt['name']!r} sums what they return number "
            "by number; choose another fedopt"
        )
    protections = {
        f"robust: {config.robust!r}": (config.robust != "none", "robust: none"),
        "privacy.client_dp: 'on'": (config.privacy.on, "client_dp: off"),
        "privacy.secure_aggregation: 'on'": (config.privacy.secure, "secure_aggregation: off"),
        "federation.mode: 'async'": (config.federation.mode == "async", "mode: sync"),
    }
    problems += [
        f"{what} gives clients different ranks, and {key} compares or adds updates number by number; choose {instead}, "
        "or one rank for all"
        for key, (on, instead) in protections.items()
        if on
    ]
    return problems


def _able(method: type) -> bool:
    """Whether clients of a method may have different ranks."""
    return declared(method, "mixes_ranks")


def _what(config: RunConfig) -> str:
    ranks, least = config.adapter.ranks, config.adapter.min_rank
    if ranks is None and least is not None:
        return f"adapter.min_rank: {least}"
    return f"sites.min_rank: {config.sites.min_rank}" if ranks is None else f"adapter.ranks: {ranks}"
