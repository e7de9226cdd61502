"""What asynchronous runs do not go together with, in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config.schema import RunConfig

_ON = "federation.mode: 'async'"


def buffer_of(config: RunConfig) -> int:
    """Updates of a server update."""
    settings = config.asynchronous
    return settings.buffer or (1 if settings.rule == "fedasync" else config.federation.clients_per_round)


def contradictions(config: RunConfig) -> list[str]:
    """Settings of ``asynchronous:`` that are valid by themselves but not together."""
    federation, settings = config.federation, config.asynchronous
    if federation.mode == "sync":
        return [
            f"asynchronous.{key}: {getattr(settings, key)} has no effect with federation.mode: sync; choose mode: "
            "async, or leave it out"
            for key in sorted(settings.model_fields_set)
            if getattr(settings, key) != type(settings).model_fields[key].default
        ]
    problems = []
    if config.centralised:
        problems.append(
            f"{_ON} is about several clients, and setting: 'centralised' has one; choose mode: sync, or setting: "
            "homogeneous"
        )
    buffer, concurrency = buffer_of(config), settings.concurrency or federation.clients_per_round
    if settings.rule == "fedasync" and buffer != 1:
        problems.append(
            f"asynchronous.buffer: {buffer} is one of fedbuff; rule: 'fedasync' mixes in every update as it comes; "
            "leave it out, or choose rule: fedbuff"
        )
    if buffer - 1 + concurrency > federation.clients:  # the last one of a buffer makes it empty
        problems.append(
            f"asynchronous.buffer: {buffer} and concurrency: {concurrency} are of different clients, and "
            f"federation.clients is {federation.clients}; choose smaller ones"
        )
    if federation.min_updates > buffer:
        problems.append(
            f"federation.min_updates: {federation.min_updates} can never be reached with asynchronous.buffer: {buffer}"
        )
    if federation.over_select > 1:
        problems.append(
            f"federation.over_select: {federation.over_select:g} is about rounds that wait, and with {_ON} none does; "
            "choose over_select: 1"
        )
    if federation.sampling == "official":
        problems.append(
            f"federation.sampling: 'official' is a table of rounds, and with {_ON} the clock decides who is next; "
            "choose sampling: seeded"
        )
    able = [name for name in sorted(registry.FACTORS) if registry.resolve("factors", name).mixes_versions()]
    if config.factors not in able:
        problems.append(
            f"factors: {config.factors!r} takes all updates of a round to begin with the same factors, and with {_ON} "
            f"they do not; choose factors: {' or '.join(able)}"
        )
    return problems + _private(config)


def simulated(config: RunConfig) -> str | None:
    """Why a run cannot be simulated, in one sentence, or None."""
    if config.federation.mode == "sync" or config.devices.on:
        return None
    return (
        f"{_ON} needs a clock by which updates come one after the other; choose a devices.profile, or mode: sync (in a "
        "deployment, `fcit deploy submit`, updates come when sites send them)"
    )


def _private(config: RunConfig) -> list[str]:
    """Kinds of privacy whose protocol or account is of rounds."""
    privacy, problems = config.privacy, []
    if privacy.secure:
        problems.append(
            f"privacy.secure_aggregation: 'on' sums updates of clients that share keys in one round, and with {_ON} "
            "updates of different rounds come together; choose mode: sync"
        )
    if privacy.on or privacy.records:
        key = "client_dp" if privacy.on else "record_dp"
        problems.append(
            f"privacy.{key}: 'on' accounts for clients that the seed gives every round, and with {_ON} the clock "
            "decides how often each takes part; choose mode: sync"
        )
    return problems


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods, federated optimisers and robust rules that are of rounds with clients of their own."""
    name, optimiser, settings, problems = config.method["name"], config.fedopt["name"], config.asynchronous, []
    if method.pooled or not method.trains:
        problems.append(
            f"{_ON} is about clients that train, and with method: {name!r} there are none; choose mode: sync"
        )
    elif method.by_round or method.measures or method.extra_rounds(1) is not None:
        problems.append(
            f"method: {name!r} gives some rounds of a stage another meaning, for which their own clients send what "
            f"others do not, and with {_ON} a server update takes updates of several rounds; choose another method, or "
            "mode: sync"
        )
    if fedopt.sums() or fedopt.remembers:
        problems.append(
            f"fedopt: {optimiser!r} corrects clients by what the server knew when their round began, and with {_ON} "
            "that is another moment for each of them; choose another fedopt, or mode: sync"
        )
    if settings.rule == "fedasync" and not fedopt.averages:
        problems.append(
            f"asynchronous.rule: 'fedasync' is the server's step itself, which fedopt: {optimiser!r} takes otherwise; "
            "choose fedopt: fedavg or fedprox, or rule: fedbuff"
        )
    return problems
