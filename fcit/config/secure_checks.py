"""What does not go together with secure aggregation, in sentences."""

from __future__ import annotations

import math
from typing import Any

from fcit import registry
from fcit.config.schema import RunConfig

_ON = "privacy.secure_aggregation: 'on'"


def contradictions(config: RunConfig) -> list[str]:
    """Settings of secure aggregation that are valid by themselves but not together."""
    privacy, federation, problems = config.privacy, config.federation, []
    if not privacy.secure:
        if privacy.neighbours is not None:
            problems.append(
                f"privacy.neighbours: {privacy.neighbours} has no effect with secure_aggregation: off; choose "
                "secure_aggregation: on, or leave it out"
            )
        return problems
    if privacy.min_group > federation.clients_per_round:
        problems.append(
            f"privacy.min_group: {privacy.min_group} clients for a sum can never be reached with "
            f"federation.clients_per_round: {federation.clients_per_round}; raise that to {privacy.min_group} or more"
        )
    else:
        survivors = federation.clients_per_round - math.floor(privacy.dropout * federation.clients_per_round)
        if federation.min_updates > survivors:
            problems.append(
                f"federation.min_updates: {federation.min_updates} leaves no room for privacy.dropout: "
                f"{privacy.dropout} of clients_per_round: {federation.clients_per_round}; one client that fails could "
                f"only be asked alone, which shows its update; lower it to {survivors}, or dropout"
            )
    if privacy.neighbours is not None and privacy.neighbours < privacy.min_group - 1:
        problems.append(
            f"privacy.neighbours: {privacy.neighbours} is less than the others of a group of min_group "
            f"({privacy.min_group}); raise it, or leave it out"
        )
    if config.robust != "none":
        problems.append(
            f"{_ON} lets the server see sums only, and robust: {config.robust!r} looks at single updates; choose "
            "robust: none"
        )
    if not registry.resolve("factors", config.factors).of_the_mean:
        problems.append(
            f"{_ON} sums A and B by themselves, and factors: {config.factors!r} needs products of single updates; "
            "choose factors: separate, alternate or frozen_a"
        )
    return problems


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods and federated optimisers whose clients send what is not masked."""
    problems, name = [], config.method["name"]
    if fedopt.sums():
        problems.append(
            f"{_ON} does not mask what clients return to fedopt: {config.fedopt['name']!r} beside their tensors; "
            "choose another fedopt"
        )
    if not method.trains:
        problems.append(f"{_ON} has nothing to mask: method: {name!r} trains nothing; choose another method")
    elif method.pooled:
        problems.append(
            f"{_ON} needs clients, and method: {name!r} pools all data at one participant; choose another method"
        )
    elif method.sums():
        problems.append(
            f"{_ON} does not mask what clients return to method: {name!r} beside their tensors; choose another method"
        )
    return problems
