"""Checks that a checkpoint's tensors are exactly those of the model that its config.json describes.

transformers fills missing tensors with random numbers, ignores unknown ones, and continues.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from fcit.errors import ConfigError
from fcit.models.checking import header
from fcit.models.quieting import quiet

#: Options with which transformers reports all differences instead of raising for shapes alone.
REPORTING = {"output_loading_info": True, "ignore_mismatched_sizes": True}
_SHOWN = 3  # names of tensors in a message


class Kind(Protocol):
    """What a message about a model's tensors needs to know of the model: a family, or a tower of CLIP."""

    @property
    def other_layouts(self) -> Mapping[str, str]:
        """Part of a tensor name that only files in another layout contain -> what to do about such files."""

    def part(self, tensor: str) -> str:
        """The part of the model that a tensor belongs to."""


@dataclass(frozen=True)
class Report:
    """Names of tensors as transformers loads them: those of the model, and differences in the checkpoint."""

    expected: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape in the file, in the model

    @classmethod
    def of(cls, model: Any, info: dict[str, Any], allowed: str = "") -> Report:
        """From ``output_loading_info``, which does not count tied weights and buffers as missing.

        Args:
            allowed: regular expression of unexpected names that belong to another part of the checkpoint.
        """
        unexpected = [name for name in info["unexpected_keys"] if not (allowed and re.match(allowed, name))]
        mismatched = sorted((name, tuple(held), tuple(shape)) for name, held, shape in info["mismatched_keys"])
        missing, unexpected = (sorted(names, key=_natural) for names in (info["missing_keys"], unexpected))
        return cls(tuple(model.state_dict()), tuple(missing), tuple(unexpected), tuple(mismatched))

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def check_weights(key: str, files: Sequence[Path], build: Any, config: Any, kind: Kind, allowed: str = "") -> int:
    """Let transformers load the headers of weight files into a model on the ``meta`` device.

    Returns:
        the number of tensors in the files.

    Args:
        build: the model's class.
        kind: names a tensor's part of the model, for the message.
        allowed: as for :meth:`Report.of`.

    Raises:
        ConfigError: the model would not be complete.
    """
    held = {name: tensor for file in files for name, tensor in header(file).items()}
    attempt = _Attempt(build, config, config.to_json_string(use_diff=False), held, _shapes(held), allowed)
    report = _tried(attempt)
    if not report.whole:
        heads = [name.partition(".")[0] + "." for name in list(held)[:1]]
        heads += [".".join(name.split(".")[:2]) + "." for name in list(held)[:1]]
        common = [head for head in heads if all(name.startswith(head) for name in held)]
        renamed = {head: {name.removeprefix(head): tensor for name, tensor in held.items()} for head in common}
        others = {head: replace(attempt, held=renamed[head], shapes=_shapes(renamed[head])) for head in renamed}
        prefix = next((head for head in others if not _tried(others[head]).missing), "")
        judge(key, files[0].parent, report, kind, prefix)
    return len(held)


@dataclass(frozen=True)
class _Attempt:
    """Tensors without values that are loaded into a model; equal ones have equal reports."""

    build: Any
    config: Any = field(compare=False)
    described: str  # the configuration as text
    held: dict[str, torch.Tensor] = field(compare=False)
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    allowed: str


def _shapes(held: Mapping[str, torch.Tensor]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in held.items())


@lru_cache(maxsize=16)
def _tried(attempt: _Attempt) -> Report:
    """Tried once in a process for each model, which may be loaded several times: it takes as long as a small one."""
    with quiet():
        model, info = attempt.build.from_pretrained(
            None,
            config=attempt.config,
            state_dict=dict(attempt.held),
            device_map="meta",
            dtype=torch.float32,
            **REPORTING,
        )
    return Report.of(model, info, attempt.allowed)


def judge(key: str, where: Any, report: Report, kind: Kind, prefix: str = "") -> None:
    """Refuse a model that is not complete.

    Args:
        prefix: a prefix that all names of the checkpoint have and should not have.

    Raises:
        ConfigError: how many tensors are missing, unexpected or of another shape, the first, and the likely reason.
    """
    if report.whole:
        return
    faults = []
    if report.missing:
        faults.append(f"{len(report.missing)} of its {len(report.expected)} tensors missing ({_some(report.missing)})")
    if report.unexpected:
        faults.append(f"{len(report.unexpected)} in the files are no part of it ({_some(report.unexpected)})")
    if report.mismatched:
        name, held, shape = report.mismatched[0]
        shapes = f"first {name}: {list(held)} instead of {list(shape)}"
        faults.append(f"{len(report.mismatched)} of another shape than config.json asks for ({shapes})")
    raise ConfigError(
        f"{key}: {str(where)!r} does not load whole: {', '.join(faults)}; {_reason(report, kind, prefix)}"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _reason(report: Report, kind: Kind, prefix: str) -> str:
    """The likely reason, and the next step."""
    whole = "name a model that was saved whole (save_pretrained), or download it again"
    if prefix:
        return f"all its names begin with {prefix!r}: save the weights again without it"
    if any(".lora_" in name for name in report.unexpected):
        return "there are LoRA matrices inside: merge them (merge_and_unload) and save the model again"
    for mark, advice in kind.other_layouts.items():
        if any(mark in name for name in report.unexpected):
            return advice
    missing = set(report.missing)
    parts: dict[str, set[str]] = {}
    for name in report.expected:
        parts.setdefault(kind.part(name), set()).add(name)
    gone = [name for name, members in parts.items() if members <= missing]
    if gone and len(gone) < len(parts):
        return f"the checkpoint has no {' and no '.join(gone)}: {whole}"
    if gone:
        return f"nothing of the model is in it, so the weights are another model's or their names were changed: {whole}"
    if report.mismatched:
        return f"config.json and weights are of different models or sizes: {whole}"
    if report.missing:
        return f"a part was not saved, or config.json is that of a larger model: {whole}"
    return "config.json is that of a smaller model, or the weights are another model's: let both come from one model"
