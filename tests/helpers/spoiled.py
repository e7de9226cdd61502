"""Copies of a small model with one fault each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models.backbone import Backbone

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 7192800\n"


def settings(tiny: Path, **options) -> Config:
    return Config(model=str(tiny / "llava"), identity=str(tiny / "clip"), feature_cache="off", **options)


def refused(tiny: Path) -> str:
    """The one sentence."""
    with pytest.raises(ConfigError) as error:
        Backbone(settings(tiny))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(folder: Path, function) -> None:
    """Save other tensors in the place of a folder's weights."""
    save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def write(file: Path, **keys) -> None:
    """Change keys of a JSON file; None removes one."""
    found = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def without(*parts):
    return lambda state: {name: t for name, t in state.items() if not any(part in name for part in parts)}


def renamed(prefix: str):
    return lambda state: {prefix + name: t for name, t in state.items()}


def cut(part: str):
    return lambda state: {name: t[:3].clone() if part in name else t for name, t in state.items()}


def added(name: str):
    return lambda state: {**state, name: torch.zeros(2)}


def assert_said(sentence: str, pattern: str) -> None:
    """A sentence matches a pattern."""
    with pytest.raises(ConfigError, match=pattern):
        raise ConfigError(sentence)
