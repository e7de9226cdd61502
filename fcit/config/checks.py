"""Checks of a configuration; mistakes are sentences with key, value and allowed values."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from fcit import registry
from fcit.config import (
    async_checks,
    device_checks,
    per_client_checks,
    personal_checks,
    privacy_checks,
    rank_checks,
    record_checks,
    secure_checks,
    token_checks,
    trainer_checks,
    wire_checks,
)
from fcit.config.schema import CENTRALISED, RunConfig
from fcit.io.bounded import shown


def _kinds(annotation: Any) -> list[Any]:
    """What a key may hold, apart from nothing."""
    of_several = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for kind in typing.get_args(annotation) if kind is not type(None)] if of_several else [annotation]


def _below(annotation: Any, part: int | str) -> Any:
    """What a part of a location holds, of a key that holds ``annotation``; None if that is not known."""
    kinds = _kinds(annotation)
    section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    if section is not None:
        field = section.model_fields.get(part)
        return field.annotation if field else None
    inner = typing.get_args(kinds[0])  # dict[str, Section] or list[Section]
    return inner[-1] if inner else None


def place_of(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location without the kinds that pydantic names behind a key that holds one of several: ``str``, ``Section``."""
    place: list[int | str] = []
    current: Any = model
    parts = iter(location)
    for part in parts:
        place.append(part)
        current = _below(current, part)
        if len(_kinds(current)) > 1:
            next(parts, None)
    return tuple(place)


def _allowed_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in place[:-1]:
        current = _below(current, part)
    return sorted(key for kind in _kinds(current) for key in getattr(kind, "model_fields", {}))


def _in_sections(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """A key of the model itself as the sections have it that know it: ``'training.lr'`` for ``lr``; empty if none."""
    [key, *inner] = location
    known = [name for name, field in model.model_fields.items() if key in getattr(field.annotation, "model_fields", {})]
    return "" if inner else " or ".join(f"'{name}.{key}'" for name in known)


def _example(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """An example of a key, from the ``examples`` of the innermost field of a location; empty if it has none."""
    current: Any = model
    example = ""
    for part in location:
        fields = getattr(current, "model_fields", None)
        if fields is None:
            inner = [a for a in typing.get_args(current) if a is not type(None)]
            current = inner[-1] if inner else None
        elif part in fields:
            examples = fields[part].examples
            example, current = f"{part}: {examples[0]}" if examples else "", fields[part].annotation
    return f", e.g. `{example}`" if example else ""


def sentences(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Turn errors of pydantic into sentences with key, value and allowed values."""
    sentences = []
    items = [(item, place_of(model, item["loc"])) for item in error.errors()]
    inner = {place[:depth] for _, place in items for depth in range(len(place))}
    several: dict[tuple[int | str, ...], list[str]] = {}  # what is wrong with a key that holds one of several kinds
    for item, place in items:
        key = (prefix + ".".join(str(part) for part in place))[:200]
        if not place:
            sentences.append(prefix + item["msg"].removeprefix("Value error, "))
            continue
        if item["type"] == "extra_forbidden":
            allowed = _allowed_keys(model, place)
            known = _in_sections(model, place)
            hint = f"; did you mean {known}?" if known else registry.nearest(str(place[-1]), allowed)
            sentences.append(f"{key}: unknown key{hint} (allowed: {', '.join(allowed) or 'none'})")
            continue
        example = _example(model, place)
        if item["type"] == "missing":
            sentences.append(f"{key}: must be given{example}")
            continue
        message = item["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if len(item["loc"]) == len(place):
            sentences.append(f"{key}: {message}, got {shown(item['input'])}{example}")
        elif place not in inner:  # else it is of the kind whose own keys are wrong
            reasons = several.setdefault(place, [])
            reasons.append(message)
            if len(reasons) > 1:
                sentences.pop()
            sentences.append(f"{key}: {' or '.join(reasons)}, got {shown(item['input'])}{example}")
    return sentences


def contradictions(config: RunConfig) -> list[str]:
    """Settings that are valid by themselves but not together."""
    federation = config.federation
    problems = []
    if federation.clients_per_round > federation.clients:
        problems.append(
            f"federation.clients_per_round: {federation.clients_per_round} is more than "
            f"federation.clients ({federation.clients})"
        )
    if federation.sampling == "official" and (federation.clients, federation.clients_per_round) != (50, 5):
        problems.append(
            "federation.sampling: 'official' is a table for 50 clients and 5 per round, got "
            f"{federation.clients} and {federation.clients_per_round}; use 'seeded'"
        )
    if federation.min_updates > federation.clients_per_round and federation.mode == "sync":
        problems.append(
            f"federation.min_updates: {federation.min_updates} can never be reached with "
            f"{federation.clients_per_round} clients per round"
        )
    if federation.engine not in registry.ENGINES:
        problems.append(f"federation.{registry.unknown('engine', federation.engine)}")
    unknown = device_problem(config.backbone.device)
    if unknown:
        problems.append(f"backbone.device: {config.backbone.device!r} {unknown}")
    problems += _family_problems(config)
    if config.evaluation.unseen and config.evaluation.when == "final":
        problems.append(
            "evaluation.unseen: true asks data sets that are not trained yet, and after the last stage, which alone is "
            "evaluated by evaluation.when: 'final', there are none; choose when: stage, or unseen: false"
        )
    for part in (
        rank_checks,
        async_checks,
        device_checks,
        personal_checks,
        privacy_checks,
        record_checks,
        secure_checks,
        token_checks,
        trainer_checks,
        wire_checks,
    ):
        problems += part.contradictions(config)
    problems += _central_problems(config) if config.centralised else []
    return problems + (_site_problems(config) if config.stream == "site" else [])


def _family_problems(config: RunConfig) -> list[str]:
    """A family that is none, or whose projector is trained although it is behind what is kept of an image."""
    family = config.backbone.family
    if registry.is_own(family):
        problem = registry.problem("model", family)
        return [] if problem is None else [f"backbone.family: {problem}"]
    if family not in ("auto", "generic"):
        return [
            f"backbone.family: {family!r} is none of auto, generic and ./mine.py:MyFamily; for a model that has a "
            f"family ({', '.join(sorted(registry.MODELS))}) choose auto"
        ]
    if family == "generic" and config.adapter.projector != "frozen":
        return [
            f"adapter.projector: {config.adapter.projector!r}, but with backbone.family: generic what is kept of an "
            "image is behind the projector; set adapter.projector: frozen"
        ]
    return []


def _central_problems(config: RunConfig) -> list[str]:
    """Settings of a federation that ``setting: centralised`` has none of."""
    federation, problems = config.federation, []
    given = {key: getattr(federation, key) for key in CENTRALISED}
    if given != CENTRALISED:
        problems.append(
            "setting: 'centralised' has one participant, which trains a task once for training.epochs epochs; set "
            + " ".join(f"federation.{key}={value}" for key, value in CENTRALISED.items())
            + f" (got {', '.join(map(str, given.values()))}), or choose setting: homogeneous"
        )
    fixed = {"robust": "none", "factors": "separate", "stream": "benchmark"}
    values = {key: getattr(config, key) for key in fixed} | {"fedopt": config.fedopt.get("name")}
    for key, needed in {**fixed, "fedopt": "fedavg"}.items():
        if values[key] != needed:
            problems.append(
                f"{key}: {values[key]!r} is about several clients, and setting: 'centralised' has one; choose {key}: "
                f"{needed}, or setting: homogeneous"
            )
    if config.privacy.on:
        problems.append(
            "privacy.client_dp: 'on' hides one client among several, and setting: 'centralised' has one; choose "
            "client_dp: off, or setting: homogeneous"
        )
    return problems


def device_problem(name: str) -> str | None:
    """Why a text names no device, as the end of a sentence, or None."""
    return None if re.fullmatch(r"cpu|auto|cuda(:\d+)?", name) else "is neither 'cpu' nor 'cuda[:n]' nor 'auto'"


def stage_problem(config: RunConfig, count: int, owner: str) -> str | None:
    """Why the stages of ``evaluation`` do not fit a run of ``count`` stages, in one sentence, or None."""
    for key in ("when", "held_out_when"):
        when = getattr(config.evaluation, key)
        beyond = [n for n in when if n > count] if isinstance(when, list) else []
        if beyond:
            return (
                f"evaluation.{key}: {when} names stage {beyond[0]}, and {owner} has the stages 1 to {count}; "
                "name some of these, or say stage or final"
            )
    return None


def epochs_problem(config: RunConfig, tasks: int, owner: str) -> str | None:
    """Why ``training.epochs`` does not fit a benchmark of so many tasks, in one sentence, or None."""
    epochs = config.training.epochs
    if isinstance(epochs, int) or len(epochs) == tasks:
        return None
    return (
        f"training.epochs: {epochs} has {len(epochs)} numbers, and {owner} has {tasks} tasks; give one for each, or "
        "one for all"
    )


def _site_problems(config: RunConfig) -> list[str]:
    """Settings that are impossible with ``stream: site``, where the server does not know the tasks."""
    problem = stage_problem(config, config.federation.stages, "a run with stream: site (federation.stages)")
    problems = [problem] if problem else []
    if not isinstance(config.training.epochs, int):
        problems.append(
            f"training.epochs: {config.training.epochs} is about tasks, which the server does not know with stream: "
            "'site'; give one number"
        )
    if config.evaluation.unseen:
        problems.append(
            "evaluation.unseen: true is about tasks of later stages, which the server does not know with stream: "
            "'site', and no site has begun; choose unseen: false, or stream: benchmark"
        )
    if config.evaluation.held_out:
        names = ", ".join(entry.benchmark for entry in config.evaluation.held_out)
        problems.append(
            f"evaluation.held_out: [{names}] is asked by a server that holds the questions; with stream: 'site' each "
            "site is scored on its own test files and no others; leave it out, or choose stream: benchmark"
        )
    if config.evaluation.samples is not None:
        problems.append(
            f"evaluation.samples: {config.evaluation.samples} chooses among questions that the server holds; with "
            "stream: 'site' each site is scored on the whole of its own test files; leave it out, or shorten those"
        )
    return problems


def _one_part(config: RunConfig, kind: str) -> list[str]:
    part = dict(getattr(config, kind))
    name = part.pop("name", None)
    if not isinstance(name, str):
        return [f"{kind}: needs a name (allowed: {', '.join(sorted(registry.KINDS[kind]))})"]
    problem = registry.problem(kind, name)
    if problem is not None:
        return [problem]
    options = registry.resolve(kind, name).Options
    try:
        options.model_validate(part)
    except ValidationError as error:
        return sentences(error, options, prefix=f"{kind}.")
    return []


def part_problems(config: RunConfig) -> list[str]:
    """Mistakes in method and federated optimiser, or in their combination."""
    problems = _one_part(config, "method") + _one_part(config, "fedopt")
    return problems or _misfits(config)


def _misfits(config: RunConfig) -> list[str]:
    """Federated optimisers, methods and rules for averaging factors that cannot be combined."""
    names = config.method["name"], config.fedopt["name"]
    method, fedopt = registry.resolve("method", names[0])(config), registry.resolve("fedopt", names[1])
    rank = method.layout.problem(config.adapter.rank)
    problems = [] if rank is None else [f"{rank} (method: {names[0]!r})"]
    if method.layout.keyed and config.adapter.projector == "per_subspace":
        problems.append(
            "adapter.projector: 'per_subspace' averages a question's projected images by the weights of its subspaces, "
            f"and with method: {names[0]!r} these follow from the projected images; choose projector: shared or frozen"
        )
    if config.factors not in method.factors:
        allowed = ", ".join(sorted(method.factors))
        problems.append(
            f"factors: {config.factors!r} makes no sense with method: {names[0]!r}; choose factors: {allowed}"
        )
    rule = registry.resolve("factors", config.factors)
    if not rule.stepwise and not fedopt.averages:
        problems.append(
            f"factors: {config.factors!r} makes new factors in every round, which fedopt: {names[1]!r} cannot step "
            "between; choose fedopt: fedavg or fedprox, or factors: separate"
        )
    elif not rule.by_records and fedopt.sums():
        problems.append(
            f"factors: {config.factors!r} weighs clients by what they have learnt, and fedopt: {names[1]!r} sums what "
            "they return as if all weighed alike; choose another fedopt, or factors: separate"
        )
    if config.factors == "alternate" and not fedopt.halves:
        problems.append(
            f"factors: 'alternate' trains half of a subspace per round, which fedopt: {names[1]!r} is not made for; "
            "choose another fedopt, or factors: separate or frozen_a"
        )
    if fedopt.remembers and method.pooled:
        problems.append(
            f"fedopt: {names[1]!r} needs clients that remember, and method: {names[0]!r} pools all data at one "
            "participant; choose fedopt: fedavg"
        )
    if fedopt.remembers and method.refactors:
        problems.append(
            f"fedopt: {names[1]!r} has clients remember what they learnt of every number, and method: {names[0]!r} "
            "replaces the numbers after each stage; choose another fedopt"
        )
    if method.pooled == "all" and not isinstance(config.training.epochs, int):
        problems.append(
            f"training.epochs: {config.training.epochs} is about single tasks, and method: {names[0]!r} trains on all "
            "of them together; give one number"
        )
    problems += rank_checks.misfits(config, method, fedopt) + per_client_checks.misfits(config, method, fedopt)
    problems += device_checks.misfits(config, method)
    problems += async_checks.misfits(config, method, fedopt) if config.federation.mode == "async" else []
    problems += trainer_checks.misfits(config, type(method), fedopt)
    problems += wire_checks.misfits(config)
    problems += privacy_checks.misfits(config, method, fedopt) if config.privacy.on else []
    problems += record_checks.misfits(config, method) if config.privacy.records else []
    problems += secure_checks.misfits(config, method, fedopt) if config.privacy.secure else []
    problems += token_checks.misfits(config, method) if config.privacy.tokens else []
    return problems + (_unprotected(config, method, fedopt) if config.robust != "none" else [])


def _unprotected(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Settings under which a robust rule would not protect the model, or never apply."""
    least = registry.resolve("robust", config.robust).least
    rule, problems = f"robust: {config.robust!r}", []
    key, updates = "federation.clients_per_round", config.federation.clients_per_round
    if config.federation.mode == "async":
        key, updates = "asynchronous.buffer", async_checks.buffer_of(config)
    if not registry.resolve("factors", config.factors).of_the_mean:
        problems.append(
            f"{rule} looks at A and B one by one, and factors: {config.factors!r} looks at the products of updates; "
            "choose factors: separate, alternate or frozen_a, or robust: none"
        )
    if fedopt.sums():
        problems.append(
            f"{rule} does not see what clients return to fedopt: {config.fedopt['name']!r} beside their tensors (its "
            "sum would pass it by); choose another fedopt, or robust: none"
        )
    if method.sums():
        problems.append(
            f"{rule} does not see what clients return to method: {config.method['name']!r} beside their tensors, which "
            "the method sums itself; choose another method, or robust: none"
        )
    if method.pooled:
        problems.append(
            f"{rule} needs several clients, and method: {config.method['name']!r} pools all data at one participant; "
            "choose robust: none"
        )
    elif updates < least:
        problems.append(
            f"{rule} needs {least} updates, and {key} is {updates}; raise it to {least} or more, or choose robust: none"
        )
    return problems
