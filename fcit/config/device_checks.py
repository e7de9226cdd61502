"""What does not go together with simulated time, in sentences."""

from __future__ import annotations

from typing import Any

from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ``devices:`` and ``federation.over_select`` that are valid by themselves but not together."""
    devices, federation, problems = config.devices, config.federation, []
    profile = f"devices.profile: {devices.profile!r}"
    if not devices.on:
        if federation.over_select > 1:
            problems.append(
                f"federation.over_select: {federation.over_select:g} needs a clock by which some clients are first; "
                "choose a devices.profile, or leave it out"
            )
        return problems
    if config.stream == "site" or config.centralised:
        other = "stream: 'site'" if config.stream == "site" else "setting: 'centralised'"
        problems.append(
            f"{profile} simulates clients, and with {other} there are none that this machine could simulate; choose "
            "profile: none"
        )
    if federation.sampling == "official" and (federation.over_select > 1 or not devices.always):
        problems.append(
            f"federation.sampling: 'official' is a fixed table, and {profile} with federation.over_select: "
            f"{federation.over_select:g} asks others; choose sampling: seeded"
        )
    if (config.privacy.on or config.privacy.records) and not devices.always:
        problems.append(
            f"{profile} lets time decide who takes part, and privacy.{_accounted(config)}: 'on' counts from the seed "
            "how often each does; choose uniform or lognormal"
        )
    if federation.over_select > 1:
        problems += _over_selected(config)
    return problems


def deployed(config: RunConfig) -> str | None:
    """Why a run cannot go to the sites of a deployment, in one sentence, or None."""
    if not config.devices.on:
        return None
    return (
        f"devices.profile: {config.devices.profile!r} simulates how fast clients are, and sites of a deployment are as "
        "fast as they are; submit the run with devices.profile=none federation.over_select=1"
    )


def _accounted(config: RunConfig) -> str:
    return "client_dp" if config.privacy.on else "record_dp"


def _over_selected(config: RunConfig) -> list[str]:
    """What over-selection does not go with."""
    over, problems = f"federation.over_select: {config.federation.over_select:g}", []
    if config.privacy.on or config.privacy.records:
        problems.append(
            f"{over} drops updates of clients that took part, which privacy.{_accounted(config)}: 'on' does not "
            "account for; choose over_select: 1"
        )
    if config.privacy.secure:
        problems.append(
            f"{over} leaves clients out by when their updates come, and with privacy.secure_aggregation: 'on' a sum is "
            "of those that have shared their keys; choose over_select: 1 (privacy.dropout is the room for late ones)"
        )
    return problems


def misfits(config: RunConfig, method: Any) -> list[str]:
    """Methods that have no clients to be late."""
    if config.federation.over_select > 1 and method.pooled:
        return [
            f"federation.over_select: {config.federation.over_select:g} is about clients, and method: "
            f"{config.method['name']!r} pools all data at one participant; choose over_select: 1"
        ]
    return []
