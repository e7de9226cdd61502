"""SITE.yaml: what one data owner lets happen on its machine; written by `fcit deploy init`, owned by the site."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fcit import registry
from fcit.config.checks import device_problem, sentences
from fcit.config.kinds import MicroBatch
from fcit.config.schema import Section
from fcit.errors import ConfigError
from fcit.io import bounded


@dataclass(frozen=True)
class Relative:
    """Marks a path that is relative to the file that contains it."""


RELATIVE = Relative()


def _inside(value: str) -> str:
    """A path that stays below the data root; links are followed, and checked, when it is opened."""
    path = PurePosixPath(value)
    if not value or "\0" in value or path.is_absolute() or ".." in path.parts:
        raise ValueError("must be a path below data_root, without '..'")
    return value


Inside = Annotated[str, AfterValidator(_inside)]


def _door(value: str) -> str:
    """host:port, as Flower takes it: a name or an address (IPv6 in brackets), no scheme, a port that exists."""
    host, _, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("must be host:port with a port of 1 to 65535, for example fcit.example.org:9092")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", bare) and not _is_address(bare):
        raise ValueError("must be a host name or IP address (IPv6 in brackets) and a port, without https:// or a path")
    return value


def _loopback(value: str) -> str:
    """An address that no other machine reaches."""
    if not _is_address(value) or not value.startswith("127."):
        raise ValueError("must be a loopback address, 127.0.0.1 to 127.255.255.254: no other machine may reach it")
    return value


def _device(value: str) -> str:
    """What torch computes on here."""
    problem = device_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class SiteTask(Section):
    """One task of a site's own stream. Paths are relative to the site's ``data_root``."""

    train: Inside = Field(description="training records in LLaVA's format or as messages, a JSON list or JSON Lines")
    test: Inside = Field(description="test records; scored here, never sent")
    references: Inside | None = Field(None, description="COCO captions of the test records, or TextVQA's annotations")
    images: Inside = Field("datasets", description="folder that image names are relative to")
    scorer: str = "exact"
    suffix: str = Field("", description="line added to every instruction that does not end with it")
    max_new_tokens: int | None = Field(None, ge=1)
    start_stage: int = Field(0, ge=0, description="first stage (counted from 0) that trains this task")


class Site(Section):
    """The configuration of a site: orders of the server are carried out within these limits or refused."""

    name: str = Field(
        "0", pattern=r"^\d+$", description="client number; the operator registers this site's key under it"
    )
    superlink: Annotated[str, AfterValidator(_door)] = Field(
        "127.0.0.1:9092", description="the operator's door, host:port"
    )
    ca: Annotated[str, RELATIVE] = Field("ca.crt", description="certificate of the operator's authority")
    key: Annotated[str, RELATIVE] = Field(
        "site.key", description="this site's private key; it never leaves the machine"
    )
    home: Annotated[str, RELATIVE] = Field(
        "home", description="state of this site: memory, logs, audit trail, features"
    )
    address: Annotated[str, AfterValidator(_loopback)] = Field(
        "127.0.0.1", description="loopback address between SuperNode and worker"
    )
    port: int = Field(9094, ge=1, le=65535, description="loopback port between SuperNode and worker")
    data_root: Annotated[str, RELATIVE] = Field("data", description="nothing outside this folder is opened as data")
    benchmark: Annotated[str | None, RELATIVE] = Field(
        None, description="stream: benchmark with a YAML file of its own: that file, here"
    )
    model: Annotated[str | None, RELATIVE] = Field(
        None, description="folder of the backbone here (default: as ordered, fcit-tiny only)"
    )
    identity: Annotated[str | None, RELATIVE] = Field(None, description="folder of the identity encoder here")
    apps: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=list, description="SHA-256 of the apps whose orders are done here; all others are refused"
    )
    worker: Literal["resident", "process"] = Field(
        "resident", description="resident: one process keeps the backbone; process: a fresh one for every order"
    )
    stream: Literal["benchmark", "site"] = Field("benchmark", description="site: the tasks below, in order")
    tasks: list[SiteTask] = Field(default_factory=list)
    uplink_mbit: float | None = Field(
        None,
        gt=0,
        description="megabits per second that leave this site; below 4 updates travel in smaller pieces, so that each "
        "is there before Flower sends it again",
    )
    arrival_timeout: float = Field(
        1800.0,
        gt=0,
        description="seconds an order may take to come whole; then it is given up, the worker starts again",
    )
    device: Annotated[str, AfterValidator(_device)] | None = Field(
        None, description="cpu, cuda, cuda:1; default: as ordered"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="of the backbone; if allowed")
    micro_batch: MicroBatch = Field(None, description="records per forward pass, or auto; default: as ordered")
    checkpointing: bool | Literal["auto"] | None = Field(
        None, description="compute activations twice, or auto; default: as ordered"
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="largest adapter rank trained here; default: as ordered (where that is more: needs sites.min_rank)",
    )
    trainer: str | None = Field(
        None,
        description="a Trainer of the site's own, ./mine.py:make, or hf; default: as ordered (needs sites.trainer)",
    )
    threads: int | None = Field(None, ge=1, description="torch threads; default: as ordered")
    min_records: int = Field(
        8,
        ge=1,
        description="identity tokens, and statistics that methods send beside what they train, are not sent of fewer "
        "records",
    )
    secure_aggregation: Literal["allowed", "required"] = Field(
        "allowed",
        description="required: orders of runs in which updates are sent unmasked (privacy.secure_aggregation: off), or "
        "masked on a ring (privacy.neighbours), are refused",
    )
    min_group: int = Field(
        3, ge=3, description="with secure_aggregation: required, runs with a smaller privacy.min_group are refused"
    )
    max_bad_share: float = Field(0.01, ge=0, lt=1, description="share of unusable records that is passed over")
    max_record_epsilon: float | None = Field(
        None,
        gt=0,
        description="epsilon of any record here over all runs, by this site's own account; runs without "
        "privacy.record_dp, and trainings that would exceed it, are refused (needs `pip install 'fcit[privacy]'`)",
    )
    record_delta: float = Field(1e-5, gt=0, lt=1, description="delta of max_record_epsilon")
    min_record_noise: float | None = Field(
        None,
        gt=0,
        description="smallest record_noise_multiplier; runs without privacy.record_dp, and trainings with less, are "
        "refused",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Site:
        if self.stream == "site" and not self.tasks:
            raise ValueError("stream: site needs tasks (train, test, scorer, start_stage)")
        if self.min_group > 3 and self.secure_aggregation == "allowed":
            raise ValueError(f"min_group: {self.min_group} has no effect without secure_aggregation: required")
        starts = [task.start_stage for task in self.tasks]
        if starts != sorted(starts) or len(set(starts)) != len(starts):
            raise ValueError(f"tasks must start at ascending stages, got start_stage {starts}")
        for number, task in enumerate(self.tasks):
            problem = registry.problem("scorer", task.scorer)
            if problem is not None:
                raise ValueError(f"tasks[{number}].{problem}")
        return self

    def current(self, stage: int) -> int | None:
        """Number of the task trained in a stage: the last one that has begun; None before the first."""
        begun = [n for n, task in enumerate(self.tasks) if task.start_stage <= stage]
        return begun[-1] if begun else None

    @property
    def piece(self) -> int | None:
        """Bytes of the pieces in which updates are sent; None: Flower's own 5 MiB.

        Flower has two pieces on their way, and sends one again that is not answered within 30 seconds, for ever. Two of
        these take 20. None is smaller than 64 KiB, as each costs a tenth of a second of work along its way.
        """
        if self.uplink_mbit is None:
            return None
        return int(min(max(self.uplink_mbit * 1e6 / 8 * 10, 2**16), 5 * 2**20))

    @property
    def inner(self) -> str:
        """host:port between SuperNode and worker."""
        return f"{self.address}:{self.port}"

    @property
    def folder(self) -> Path:
        """The site's own folder for state, logs and the audit trail."""
        return Path(self.home)


def load(path: str | os.PathLike[str]) -> Site:
    """Read a SITE.yaml; relative paths in it are relative to it.

    Raises:
        ConfigError: every mistake found.
    """
    file = Path(path)
    raw: Any = bounded.read_yaml(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", str(file))
    for name, field in Site.model_fields.items():
        value = raw.get(name, field.default)
        if RELATIVE in field.metadata and isinstance(value, str):
            raw[name] = bounded.full_path(file.parent, value)
    if isinstance(raw.get("trainer"), str):
        raw["trainer"] = registry.anchored(raw["trainer"], file.parent)
    for task in raw["tasks"] if isinstance(raw.get("tasks"), list) else ():
        if isinstance(task, dict) and isinstance(task.get("scorer"), str):
            task["scorer"] = registry.anchored(task["scorer"], file.parent)
    try:
        return Site.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(sentences(error, Site), str(file)) from None
