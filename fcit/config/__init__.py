"""The configuration of a run: YAML plus ``key=value``, checked completely before anything is loaded."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fcit import registry
from fcit.config.checks import contradictions, part_problems, place_of, sentences
from fcit.config.devices import TRACES
from fcit.config.schema import Adapter, Backbone, Federation, RunConfig, Section, Training
from fcit.errors import ConfigError
from fcit.io import bounded

__all__ = [
    "Adapter",
    "Backbone",
    "Federation",
    "RunConfig",
    "Section",
    "Training",
    "anchored",
    "dump",
    "load",
    "load_resolved",
    "parse",
    "parse_text",
    "resolve",
    "settings",
]

LEVELS = 8  # maximum of dots in the key of an override; settings are not nested deeper


def _without(raw: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """The mapping without the keys at these locations."""
    rest = copy.deepcopy(raw)
    for location in locations:
        inner: Any = rest
        for part in location[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and location:
            inner.pop(location[-1], None)
    return rest


def parse(raw: dict[str, Any], source: str = "config") -> RunConfig:
    """Check a raw mapping and return the configuration.

    Raises:
        ConfigError: with all mistakes, one sentence each.
    """
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = sentences(error, RunConfig)
        # Valid parts are checked further, so that all mistakes are reported at once.
        rest = _without(raw, [place_of(RunConfig, item["loc"]) for item in error.errors()])
        with contextlib.suppress(ValidationError):
            config = RunConfig.model_validate(rest)
            problems += contradictions(config) + part_problems(config)
        raise ConfigError(problems, source) from None
    problems = contradictions(config) + part_problems(config)
    if problems:
        raise ConfigError(problems, source)
    return config.model_copy(update={kind: _whole_part(config, kind) for kind in ("method", "fedopt")})


def parse_text(text: str, source: str) -> RunConfig:
    """The configuration contained in an order.

    Raises:
        ConfigError: with all mistakes.
    """
    try:
        raw = bounded.parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", source) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", source)
    return parse(raw, source)


def _whole_part(config: RunConfig, kind: str) -> dict[str, Any]:
    """A part with all options, including defaults."""
    part = dict(getattr(config, kind))
    name = part.pop("name")
    return {"name": name, **registry.resolve(kind, name).Options.model_validate(part).model_dump(mode="json")}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not bounded.is_file(path):
        near = sorted(p.name for p in path.parent.glob("[!.]*.yaml")) if bounded.is_dir(path.parent) else []
        hint = f" (there are: {', '.join(near)})" if near else ""
        raise ConfigError(f"no such configuration file{hint}", str(path))
    raw = bounded.read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", str(path))
    if {"datasets", "tasks"} <= raw.keys():
        raise ConfigError(
            "is a benchmark, not the configuration of a run; name it in one, e.g. "
            f"`fcit run configs/quick.yaml benchmark={path} data_root=...`",
            str(path),
        )
    return raw


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if key in ("method", "fedopt") and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            other_part = key in ("method", "fedopt") and value.get("name") not in (None, merged[key].get("name"))
            merged[key] = value if other_part else _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load(path: str | os.PathLike[str], overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file (``extends:`` another at most once) and apply ``key=value`` overrides.

    Raises:
        ConfigError: every mistake of file and overrides together.
    """
    file = Path(path)
    raw = _read_yaml(file)
    parent = raw.pop("extends", None)
    if parent is not None:
        other = Path(bounded.full_path(file.parent, str(parent)))
        base = _read_yaml(other)
        if "extends" in base:
            raise ConfigError(f"extends: {parent} itself extends another file; one level is allowed", str(file))
        # File names are relative to the file that contains them, also if the two are in different folders.
        raw = _merge(anchored(_normal(base), other.parent), anchored(_normal(raw), file.parent))
    return resolve(raw, file.parent, str(file), overrides)


def load_resolved(path: str | os.PathLike[str], going_on: bool = False) -> RunConfig:
    """The configuration of a run folder. It was complete when written, so missing keys are newer than the run.

    A method or optimiser lists under ``EARLIER`` the values of newer options that reproduce earlier versions, if
    these are not the defaults: a run continues by the rules it began with.

    Args:
        going_on: the run is to be resumed: a run older than ``data.turns`` was trained on first answers only.

    Raises:
        ConfigError: every mistake.
    """
    file = Path(path)
    raw = _normal(_read_yaml(file))
    for kind in ("method", "fedopt"):
        part = raw.get(kind)
        if isinstance(part, dict) and registry.problem(kind, str(part.get("name"))) is None:
            earlier = getattr(registry.resolve(kind, part["name"]).Options, "EARLIER", {})
            raw[kind] = {**earlier, **part}
    if going_on and "turns" not in raw.get("data", {}):
        raw["data"] = {**raw.get("data", {}), "turns": "first"}
    return resolve(raw, file.parent, str(file))


def resolve(raw: dict[str, Any], folder: Path, source: str, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a raw mapping with overrides; file names in it are relative to ``folder``.

    File names in overrides are relative to the current folder, and so is ``output`` in any place: the folder of a
    configuration may not be writable.

    Raises:
        ConfigError: every mistake of mapping and overrides together.
    """
    raw = anchored(_normal(raw), folder)
    bad = []
    for override in overrides or []:
        key, sign, text = override.partition("=")
        if not sign or not key or key.count(".") > LEVELS:
            bad.append(
                f"override {bounded.shown(override)}: must look like key=value, e.g. seed=1 or training.lr=0.001"
            )
            continue
        try:
            value = bounded.parse_yaml(text)
        except yaml.YAMLError:
            bad.append(f"override {bounded.shown(override)}: the value is not valid YAML")
            continue
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        raw = _merge(raw, anchored(_normal(nested), Path.cwd()))
    try:
        config = parse(raw, source)
    except ConfigError as error:
        raise ConfigError([*bad, *error.problems], source) from None
    if bad:
        raise ConfigError(bad, source)
    # A benchmark file is relative to the configuration that names it.
    beside = folder / config.benchmark
    if config.benchmark.endswith((".yaml", ".yml")) and bounded.is_file(beside):
        config = config.model_copy(update={"benchmark": str(beside.resolve())})
    return config


def anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve paths of the user's files, e.g. ``./my_method.py:MyMethod``, relative to ``folder``; not ``output``."""
    raw = dict(raw)
    for kind in ("method", "fedopt"):
        part = raw.get(kind)
        if isinstance(part, dict) and isinstance(part.get("name"), str):
            raw[kind] = {**part, "name": registry.anchored(part["name"], folder)}
    if isinstance(raw.get("benchmark"), str):
        raw["benchmark"] = _benchmark(raw["benchmark"], folder)
    if isinstance(raw.get("backbone"), dict):
        models = {key: raw["backbone"].get(key) for key in ("model", "identity")}
        paths = {key: model_path(name, folder) for key, name in models.items() if isinstance(name, str)}
        raw["backbone"] = {**raw["backbone"], **paths}
        if isinstance(raw["backbone"].get("family"), str):
            raw["backbone"]["family"] = registry.anchored(raw["backbone"]["family"], folder)
    if isinstance(raw.get("output"), str) and raw["output"].startswith("~"):
        raw["output"] = bounded.full_path(folder, raw["output"])
    if isinstance(raw.get("trackers"), list):
        raw["trackers"] = [registry.anchored(t, folder) if isinstance(t, str) else t for t in raw["trackers"]]
    training = raw.get("training")
    if isinstance(training, dict) and isinstance(training.get("trainer"), str):
        raw["training"] = {**training, "trainer": registry.anchored(training["trainer"], folder)}
    if isinstance(raw.get("data_root"), str):
        raw["data_root"] = bounded.full_path(folder, raw["data_root"])
    devices = raw.get("devices")
    if isinstance(devices, dict) and str(devices.get("profile")).endswith(TRACES):
        raw["devices"] = {**devices, "profile": bounded.full_path(folder, str(devices["profile"]))}
    evaluation = raw.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("held_out"), list):
        raw["evaluation"] = {**evaluation, "held_out": [_held_out(entry, folder) for entry in evaluation["held_out"]]}
    return raw


def _held_out(entry: Any, folder: Path) -> Any:
    """An entry of ``evaluation.held_out`` with full paths."""
    if isinstance(entry, str):
        return _benchmark(entry, folder)
    if not isinstance(entry, dict):
        return entry
    full = {"benchmark": _benchmark, "data_root": lambda name, folder: bounded.full_path(folder, name)}
    paths = {key: make(entry[key], folder) for key, make in full.items() if isinstance(entry.get(key), str)}
    return {**entry, **paths}


def _benchmark(name: str, folder: Path) -> str:
    """The full path of a benchmark file in ``folder``; any other name is returned unchanged."""
    beside = bounded.full_path(folder, name)
    if name.endswith((".yaml", ".yml")) and bounded.is_file(Path(beside)):
        return beside
    return registry.anchored(name, folder)


def model_path(name: str, folder: Path) -> str:
    """The full path of a model's folder in ``folder``; any other name is returned unchanged."""
    beside = bounded.full_path(folder, name)
    with contextlib.suppress(OSError, ValueError):  # name too long for the file system, or with null bytes
        return beside if name not in ("", "fcit-tiny") and Path(beside).is_dir() else name
    return name


def _normal(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: {"name": v} if k in ("method", "fedopt") and isinstance(v, str) else v for k, v in raw.items()}


def settings(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting: key, default and description."""
    blank = section.model_validate({})
    for name, field in section.model_fields.items():
        value = getattr(blank, name)
        if isinstance(value, BaseModel):
            yield from settings(type(value), f"{prefix}{name}.")
        else:
            shown = value["name"] if isinstance(value, dict) else value
            yield f"{prefix}{name}", "-" if shown is None else str(shown), field.description or ""


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML; :func:`parse` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
