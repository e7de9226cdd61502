"""What does not go together with differential privacy, in sentences."""

from __future__ import annotations

from typing import Any

from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ``privacy:`` that are valid by themselves but not together."""
    privacy, problems = config.privacy, []
    given = [key for key in ("noise_multiplier", "epsilon") if getattr(privacy, key) is not None]
    if not privacy.on:
        return [
            f"privacy.{key}: {getattr(privacy, key)} has no effect with client_dp: off; choose client_dp: on, or leave "
            "it out"
            for key in [*given, *(["clip_quantile"] if privacy.clip_quantile is not None else [])]
        ]
    if len(given) != 1:
        problems.append(
            "privacy.client_dp: 'on' needs either noise_multiplier or epsilon (which the noise multiplier is computed "
            f"from), got {' and '.join(given) or 'neither'}"
        )
    if privacy.quantile_noise is not None and privacy.clip_quantile is None:
        problems.append(
            f"privacy.quantile_noise: {privacy.quantile_noise} has no effect without clip_quantile; give "
            "both or neither"
        )
    elif privacy.quantile_noise is not None and privacy.quantile_noise <= (privacy.noise_multiplier or 0) / 2:
        problems.append(
            f"privacy.quantile_noise: {privacy.quantile_noise} must be more than half of noise_multiplier "
            f"({privacy.noise_multiplier}), or no noise on the updates makes up for what the count tells"
        )
    if config.robust != "none":
        problems.append(
            f"privacy.client_dp: 'on' bounds what one client can change by clipping to a norm, which robust: "
            f"{config.robust!r} undoes (it looks at all updates together); choose robust: none"
        )
    if config.factors == "svd":
        problems.append(
            "privacy.client_dp: 'on' adds noise to sums of A and of B, and factors: 'svd' decomposes the sum of their "
            "products, which has none; choose factors: frozen_a, alternate or separate"
        )
    return problems


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods and federated optimisers whose clients send what is neither clipped nor noised."""
    problems, name = [], config.method["name"]
    if fedopt.sums():
        problems.append(
            f"privacy.client_dp: 'on' does not cover what clients return to fedopt: {config.fedopt['name']!r} beside "
            "their tensors, which it sums without noise; choose another fedopt"
        )
    if not method.trains:
        problems.append(f"privacy.client_dp: 'on' has nothing to protect: method: {name!r} trains nothing")
    elif method.pooled:
        problems.append(
            f"privacy.client_dp: 'on' needs clients, and method: {name!r} pools all data at one participant; choose "
            "another method"
        )
    elif not method.robust:
        problems.append(
            f"privacy.client_dp: 'on' does not cover what clients return to method: {name!r} beside their tensors, "
            "which the method sums without noise; choose another method"
        )
    return problems
