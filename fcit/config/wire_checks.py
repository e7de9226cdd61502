"""What does not go together with updates in few bytes, in sentences."""

from __future__ import annotations

from fcit import registry
from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ``federation.wire`` and ``top_k`` that are valid by themselves but not together with others."""
    wire, top_k, problems = config.federation.wire, config.federation.top_k, []
    if wire != "float32":
        problems += _private(config, f"federation.wire: {wire!r}", "choose federation.wire: float32", wire == "int8")
    if top_k is not None:
        problems += _private(config, f"federation.top_k: {top_k}", "leave federation.top_k out", True)
        if config.robust in ("median", "trimmed_mean"):
            problems.append(
                f"federation.top_k: {top_k} leaves a number out of most updates, and robust: {config.robust!r} would "
                "take the rest for outliers; choose robust: norm_clip or none, or leave top_k out"
            )
    return problems


def _private(config: RunConfig, key: str, remedy: str, in_sums: bool) -> list[str]:
    """Why privacy of clients and, ``in_sums``, secure aggregation do not go with a setting."""
    problems = []
    if config.privacy.on:
        problems.append(
            f"privacy.client_dp: 'on' accounts for what a client sends of one round, and with {key} it would send what "
            f"it owes from earlier rounds, too; {remedy}"
        )
    if config.privacy.secure and in_sums:
        problems.append(
            f"privacy.secure_aggregation: 'on' sums integers of privacy.quantise_bits, which is a wire format of its "
            f"own, and {key} would not change what clients send; {remedy}"
        )
    return problems


def misfits(config: RunConfig) -> list[str]:
    """Parts that replace from round to round what a client owes."""
    if config.federation.top_k is None or registry.resolve("factors", config.factors).stepwise:
        return []
    return [
        f"federation.top_k: {config.federation.top_k} owes the server what it leaves out, and factors: "
        f"{config.factors!r} makes new factors in every round, which that is not about; choose factors: separate, "
        "alternate or frozen_a, or leave top_k out"
    ]
