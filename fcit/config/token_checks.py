"""What does not go together with noise on descriptions of shards, in sentences."""

from __future__ import annotations

from typing import Any

from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings ``privacy.token_*`` that are valid by themselves but not together."""
    privacy = config.privacy
    if privacy.token_epsilon is None or privacy.token_noise_multiplier is None:
        return []
    return [
        f"privacy.token_epsilon: {privacy.token_epsilon} gives the noise, and so does token_noise_multiplier: "
        f"{privacy.token_noise_multiplier}; leave one out"
    ]


def misfits(config: RunConfig, method: Any) -> list[str]:
    """Methods whose clients send no descriptions, or others than sums of identity features."""
    key = "token_epsilon" if config.privacy.token_epsilon is not None else "token_noise_multiplier"
    said = f"privacy.{key}: {getattr(config.privacy, key)}"
    if not method.needs_stats:
        return [
            f"{said} has no effect with method: {config.method['name']!r}, whose clients describe no shards; leave it "
            "out"
        ]
    if method.describe.__module__ != "fcit.methods.base":  # not the sum of features that every method has
        return [
            f"{said} is for sums of identity features, and method: {config.method['name']!r} describes shards by "
            "statistics of its own, whose sensitivity is not known; leave it out"
        ]
    return []
