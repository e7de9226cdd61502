"""The configuration of a run: YAML plus ``key=value``, checked whole before anything is loaded."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fcit import registry
from fcit.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration; unknown keys are mistakes, and true is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("must be a number")
        return value


class Federation(Section):
    """Who takes part, and how often."""

    clients: int = Field(50, ge=1, description="data owners in the pool")
    clients_per_round: int = Field(5, ge=1, description="clients asked in each round")
    rounds: int = Field(10, ge=1, description="rounds per stage")
    sampling: Literal["seeded", "official"] = Field(
        "seeded", description="official: the published table (50 clients, 5 per round)"
    )
    beta: float = Field(1.0, gt=0, description="Dirichlet concentration of client sizes")
    engine: str = Field("inline", description="where client work runs; see `fcit list`")
    min_updates: int = Field(1, ge=1, description="accepted updates a round needs")
    retries: int = Field(1, ge=0, description="how often a round with too few updates is repeated")
    wire: Literal["float32", "bfloat16"] = Field("float32", description="number format on the wire")
    timeout: float = Field(3600.0, gt=0, description="seconds a round may take")


class Ray(Section):
    """Workers of ``federation.engine: ray``; nothing here changes a result but the thread count.

    A private cluster listens on loopback, on ports that are free. For fixed ports or several machines
    start a cluster (``ray start --head --port ... --min-worker-port ...``) and give its ``address``.
    """

    workers: int = Field(2, ge=1, description="long-lived worker processes, each with the model loaded once")
    num_cpus: int = Field(1, ge=1, description="cores, and threads unless backbone.threads is set, per worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per worker; 0.5 puts two workers on one")
    address: str | None = Field(None, description="an existing cluster (host:port); default: a private one, here")
    temp_dir: str | None = Field(
        None, description="Ray's own files; default: a fresh private folder, removed at the end"
    )
    object_store_mb: int = Field(200, ge=80, description="shared memory for tensors on their way")
    start_timeout: float = Field(300.0, gt=0, description="seconds until all workers must have started")
    attempts: int = Field(3, ge=1, description="workers an order may lose before the run stops")


class Adapter(Section):
    """The LoRA adapter every subspace is made of."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: str = Field(
        r".*language_model.*\.(gate_proj|up_proj|down_proj)",
        description="regular expression over module names (FCIT: feed-forward layers only)",
    )
    projector: Literal["shared", "frozen", "per_subspace"] = Field(
        "shared",
        description="shared: the vision-language projector is trained and averaged over all; "
        "per_subspace: each subspace has its own, mixed like the subspaces",
    )


class Training(Section):
    """The local loop of a client."""

    lr: float = Field(3e-3, gt=0)
    batch_size: int = Field(16, ge=1)
    epochs: int = Field(1, ge=1, description="local epochs per round")
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class Evaluation(Section):
    """How the model is asked after a stage."""

    batch_size: int = Field(64, ge=1)
    max_new_tokens: int = Field(24, ge=1)
    limit: int | None = Field(None, ge=1, description="first records of each test set only")
    batches_per_order: int = Field(4, ge=1, description="batches answered before the next order; workers share orders")
    split: Literal["test", "val"] = "test"


class Backbone(Section):
    """The frozen multimodal model."""

    model: str = Field("fcit-tiny", description="fcit-tiny, a folder or a hub name")
    identity: str | None = Field(None, description="CLIP for identity tokens; default: the model's own")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    conversation: Literal["template", "vicuna_v1"] = Field(
        "template", description="template: the processor's chat template"
    )
    feature_cache: Literal["disk", "off"] = Field("disk", description="keep frozen vision features")
    threads: int = Field(0, ge=0, description="torch threads; 0: as torch chooses")


class RunConfig(Section):
    """Everything a run depends on."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="names the run folder")
    benchmark: str = Field("fcit-mini-task", description="a shipped benchmark or a YAML file")
    setting: Literal["homogeneous", "heterogeneous"] = "homogeneous"
    seed: int = Field(0, ge=0)
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "disco"})
    fedopt: dict[str, Any] = Field(default_factory=lambda: {"name": "fedavg"})
    factors: Literal["separate", "svd", "alternate", "frozen_a"] = Field(
        "separate", description="how LoRA factors are averaged; see `fcit list factors`"
    )
    federation: Federation = Field(default_factory=lambda: Federation.model_validate({}))
    ray: Ray = Field(default_factory=lambda: Ray.model_validate({}))
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    backbone: Backbone = Field(default_factory=lambda: Backbone.model_validate({}))
    data_root: str | None = Field(None, description="folder with instructions/ and datasets/, relative to this file")
    output: str = Field("runs", description="folder that run folders are made in")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run folder")
    trackers: list[str] = Field(default_factory=list, description="who else is told every event, ./mine.py:MyTracker")

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, raw: Any) -> Any:
        """``method: disco`` means ``method: {name: disco}``."""
        if isinstance(raw, dict):
            raw = dict(raw)
            for key in ("method", "fedopt"):
                if isinstance(raw.get(key), str):
                    raw[key] = {"name": raw[key]}
        return raw


def _contradictions(config: RunConfig) -> list[str]:
    """Settings that are each fine and make no sense together."""
    federation = config.federation
    found = []
    if federation.clients_per_round > federation.clients:
        found.append(
            f"federation.clients_per_round: {federation.clients_per_round} is more than "
            f"federation.clients ({federation.clients})"
        )
    if federation.sampling == "official" and (federation.clients, federation.clients_per_round) != (50, 5):
        found.append(
            "federation.sampling: 'official' is a table for 50 clients and 5 per round, got "
            f"{federation.clients} and {federation.clients_per_round}; use 'seeded'"
        )
    if federation.min_updates > federation.clients_per_round:
        found.append(
            f"federation.min_updates: {federation.min_updates} can never be reached with "
            f"{federation.clients_per_round} clients per round"
        )
    if federation.engine not in registry.ENGINES:
        found.append(f"federation.{registry.unknown('engine', federation.engine)}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.backbone.device):
        found.append(f"backbone.device: {config.backbone.device!r} is neither 'cpu' nor 'cuda[:n]'")
    return found


def _part_problems(config: RunConfig, family: str) -> list[str]:
    part = dict(getattr(config, family))
    name = part.pop("name", None)
    if not isinstance(name, str):
        return [f"{family}: needs a name (allowed: {', '.join(sorted(registry.FAMILIES[family]))})"]
    problem = registry.problem(family, name)
    if problem is not None:
        return [problem]
    options = registry.resolve(family, name).Options
    try:
        options.model_validate(part)
    except ValidationError as error:
        return _sentences(error, options, prefix=f"{family}.")
    return []


def _all_part_problems(config: RunConfig) -> list[str]:
    """What is wrong with method and federated optimiser, or with choosing them together."""
    problems = _part_problems(config, "method") + _part_problems(config, "fedopt")
    return problems or _misfits(config)


def _misfits(config: RunConfig) -> list[str]:
    """Federated optimisers, methods and ways of averaging factors that do not go together."""
    names = config.method["name"], config.fedopt["name"]
    method, fedopt = (registry.resolve(f, n) for f, n in zip(("method", "fedopt"), names, strict=True))
    found = []
    if config.factors not in method.factors:
        allowed = ", ".join(sorted(method.factors))
        found.append(f"factors: {config.factors!r} makes no sense with method: {names[0]!r}; choose factors: {allowed}")
    if config.factors == "svd" and not fedopt.averages:
        found.append(
            f"factors: 'svd' makes new factors in every round, which fedopt: {names[1]!r} cannot step between; "
            "choose fedopt: fedavg or fedprox, or factors: separate"
        )
    if config.factors == "alternate" and not fedopt.halves:
        found.append(
            f"factors: 'alternate' trains half of a subspace per round, which fedopt: {names[1]!r} is not made for; "
            "choose another fedopt, or factors: separate or frozen_a"
        )
    if fedopt.remembers and method.pooled:
        found.append(
            f"fedopt: {names[1]!r} needs clients that remember, and method: {names[0]!r} pools all data at one "
            "participant; choose fedopt: fedavg"
        )
    return found


def _allowed_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in location[:-1]:
        if hasattr(current, "model_fields"):
            field = current.model_fields.get(part)
            current = field.annotation if field else None
        else:  # dict[str, Section] or list[Section]
            inner = typing.get_args(current)
            current = inner[-1] if inner else None
    return sorted(current.model_fields) if hasattr(current, "model_fields") else []


def _sentences(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Turn pydantic's findings into sentences with the key, the value and what is allowed."""
    sentences = []
    for item in error.errors():
        key = prefix + ".".join(str(part) for part in item["loc"])
        if not item["loc"]:
            sentences.append(prefix + item["msg"].removeprefix("Value error, "))
            continue
        if item["type"] == "extra_forbidden":
            allowed = _allowed_keys(model, item["loc"])
            hint = registry.nearest(str(item["loc"][-1]), allowed)
            sentences.append(f"{key}: unknown key{hint} (allowed: {', '.join(allowed) or 'none'})")
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            sentences.append(f"{key}: {message}, got {item['input']!r}")
    return sentences


def _without(raw: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """The mapping without the keys at these locations."""
    rest = copy.deepcopy(raw)
    for location in locations:
        inner: Any = rest
        for part in location[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(location[-1], None)
    return rest


def parse(raw: dict[str, Any], source: str = "config") -> RunConfig:
    """Check a raw mapping and return the configuration.

    Raises:
        ConfigError: with every mistake found, each one sentence.
    """
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = _sentences(error, RunConfig)
        # What is right is checked further, so that nothing is found only after a first repair.
        rest = _without(raw, [item["loc"] for item in error.errors()])
        with contextlib.suppress(ValidationError):
            config = RunConfig.model_validate(rest)
            problems += _contradictions(config) + _all_part_problems(config)
        raise ConfigError(problems, source) from None
    problems = _contradictions(config) + _all_part_problems(config)
    if problems:
        raise ConfigError(problems, source)
    return config.model_copy(update={family: _whole_part(config, family) for family in ("method", "fedopt")})


def _whole_part(config: RunConfig, family: str) -> dict[str, Any]:
    """A part with its options' defaults written out."""
    part = dict(getattr(config, family))
    name = part.pop("name")
    return {"name": name, **registry.resolve(family, name).Options.model_validate(part).model_dump(mode="json")}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("[!.]*.yaml")) if path.parent.is_dir() else []
        hint = f" (there: {', '.join(near)})" if near else ""
        raise ConfigError(f"no such configuration file{hint}", str(path))
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {error}", str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", str(path))
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
        base = _read_yaml(file.parent / str(parent))
        if "extends" in base:
            raise ConfigError(f"extends: {parent} itself extends another file; one level is allowed", str(file))
        raw = _merge(_normal(base), raw)
    return resolve(raw, file.parent, str(file), overrides)


def resolve(raw: dict[str, Any], folder: Path, source: str, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a raw mapping with overrides; file names in it are relative to ``folder``.

    Raises:
        ConfigError: every mistake of mapping and overrides together.
    """
    raw = _anchored(_normal(raw), folder)
    bad = []
    for override in overrides or []:
        key, sign, text = override.partition("=")
        if not sign or not key:
            bad.append(f"override {override!r}: must look like key=value, e.g. seed=1 or training.lr=0.001")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            bad.append(f"override {override!r}: the value is not valid YAML")
            continue
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        raw = _merge(raw, _anchored(_normal(nested), Path.cwd()))
    try:
        config = parse(raw, source)
    except ConfigError as error:
        raise ConfigError([*bad, *error.problems], source) from None
    if bad:
        raise ConfigError(bad, source)
    # A benchmark file is named relative to the configuration that names it.
    beside = folder / config.benchmark
    if config.benchmark.endswith((".yaml", ".yml")) and beside.is_file():
        config = config.model_copy(update={"benchmark": str(beside.resolve())})
    return config


def _anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The user's own files by full path: ``./my_method.py:MyMethod`` is relative to who names it."""
    raw = dict(raw)
    for family in ("method", "fedopt"):
        part = raw.get(family)
        if isinstance(part, dict) and isinstance(part.get("name"), str):
            raw[family] = {**part, "name": registry.anchored(part["name"], folder)}
    if isinstance(raw.get("benchmark"), str):
        raw["benchmark"] = registry.anchored(raw["benchmark"], folder)
    if isinstance(raw.get("trackers"), list):
        raw["trackers"] = [registry.anchored(t, folder) if isinstance(t, str) else t for t in raw["trackers"]]
    if isinstance(raw.get("data_root"), str):
        raw["data_root"] = str((folder / Path(raw["data_root"]).expanduser()).resolve())
    return raw


def _normal(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: {"name": v} if k in ("method", "fedopt") and isinstance(v, str) else v for k, v in raw.items()}


def settings(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting: its key, its default and what it means."""
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
