"""What does not go together with differential privacy, in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ``privacy:`` that are valid by themselves but not together."""
    privacy, problems = config.privacy, []
    given = [key for key in ("noise_multiplier", "epsilon") if getattr(privacy, key) is not None]
    if not privacy.on:
        return [
            f"privacy.{key}: {getattr(privacy, key)} has no effect with client_dp: off; choose client_dp: on, or leave "
            "it out"
            for key in [
                *given,
                *(["clip_quantile"] if privacy.clip_quantile is not None else []),
                *(["sampling"] if privacy.sampling == "secret" else []),
            ]
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
    problems += _no_secret(config) if privacy.secret else []
    if config.robust != "none":
        problems.append(
            f"privacy.client_dp: 'on' bounds what one client can change by clipping to a norm, which robust: "
            f"{config.robust!r} undoes (it looks at all updates together); choose robust: none"
        )
    if not registry.resolve("factors", config.factors).of_the_mean:
        problems.append(
            f"privacy.client_dp: 'on' adds noise to sums of A and of B, and factors: {config.factors!r} needs products "
            "of single updates, which have none; choose factors: frozen_a, alternate or separate"
        )
    return problems


def _no_secret(config: RunConfig) -> list[str]:
    """Settings with which who takes part would be no secret, or would matter to more than a client's own update."""
    problems = []
    if config.federation.sampling == "official":
        problems.append(
            "privacy.sampling: 'secret' cannot keep the published table of participants secret; choose "
            "federation.sampling: seeded, or privacy.sampling: public"
        )
    if config.setting == "heterogeneous":
        problems.append(
            "privacy.sampling: 'secret' needs tasks that do not depend on who else takes part, and with setting: "
            "heterogeneous a client trains the task of its place in the round; choose privacy.sampling: public"
        )
    if config.privacy.secure:
        problems.append(
            "privacy.sampling: 'secret' is none to the clients of a group, which have masks in common under "
            "secure_aggregation: on; choose privacy.sampling: public"
        )
    if config.privacy.records:
        problems.append(
            "privacy.sampling: 'secret' leaves open how often a client takes part, and clients under record_dp: on "
            "compute their noise from that; choose privacy.sampling: public"
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
    elif method.sums():
        problems.append(
            f"privacy.client_dp: 'on' does not cover what clients return to method: {name!r} beside their tensors, "
            "which the method sums without noise; choose another method"
        )
    elif config.privacy.secret and method.common(0) is None:
        problems.append(
            f"privacy.sampling: 'secret' needs a method that trains one subspace at a time: with method: {name!r} the "
            "subspace depends on the client, so that the subspaces that move show who took part; choose "
            "privacy.sampling: public"
        )
    elif config.privacy.secret and method.needs_stats:
        problems.append(
            f"privacy.sampling: 'secret' cannot keep secret whom method: {name!r} describes: sums of features over "
            "exactly the clients that were drawn are published with the adapters; choose privacy.sampling: public"
        )
    return problems
