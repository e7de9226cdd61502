"""What does not go together with factors that stay with clients, in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config.schema import RunConfig


def per_client(config: RunConfig) -> bool:
    """Whether there is no global model: every client answers with factors of its own."""
    return bool(registry.resolve("factors", config.factors).per_client)


def answerers(config: RunConfig) -> int:
    """How many clients answer every question, each for itself; 1 where a global model does."""
    return min(config.evaluation.clients, config.federation.clients) if per_client(config) else 1


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods, optimisers and protections that need both factors, or one model for all."""
    if not per_client(config):
        return []
    what, problems = f"factors: {config.factors!r} leaves B with its client", []
    if fedopt.sums():
        problems.append(
            f"{what}, and fedopt: {config.fedopt['name']!r} sums what clients return of both factors; choose another "
            "fedopt, or factors: separate"
        )
    unsafe = {
        "client_dp: 'on'": (
            config.privacy.on,
            "hides what a client has sent, and answers with a B of its own tell more",
        ),
        "secure_aggregation: 'on'": (
            config.privacy.secure,
            "lets the server see no client's part, and answers are one",
        ),
        "record_dp: 'on'": (config.privacy.records, "covers what clients send; answers by a B of their own are not"),
    }
    problems += [
        f"{what}, and privacy.{key} {why}; choose factors: frozen_a, or leave one of them out"
        for key, (on, why) in unsafe.items()
        if on
    ]
    if config.robust != "none":
        problems.append(
            f"{what}, and robust: {config.robust!r} protects a global model, of which there is none; choose "
            "robust: none"
        )
    return problems
