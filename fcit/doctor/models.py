"""Whether the models of a configuration would load: the checks of a run, without reading their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models import hashes, identity, loading, places
from fcit.models.checking import check_files, is_local


@dataclass(frozen=True)
class Checked:
    """The result for model and identity encoder."""

    lines: list[str]  # one for each
    problems: list[str]
    local: bool  # whether both are on this machine, so that they could be checked


def check_models(backbone: configuration.Backbone, sees: bool) -> Checked:
    """Check files, headers of weights, words and end tokens of both models, as far as they are on this machine.

    Args:
        sees: whether the identity encoder takes images, too.
    """
    source, clip = places.locate(backbone.model, backbone.identity)

    def check_model(folder: str) -> str:
        model = loading.inspect(folder, backbone)
        ends = " or ".join(model.tokenizer.convert_ids_to_tokens(model.ends))
        return f"{_tensors(model.tensors)}; an answer ends at {ends}"

    def check_encoder(folder: str) -> str:
        encoder = identity.inspect(folder, sees)
        return f"{_tensors(encoder.tensors)}; a text ends at {encoder.tokenizer.eos_token}"

    parts = [("backbone.model", source, True, check_model), ("backbone.identity", clip, sees, check_encoder)]
    lines, problems, local = [], [], True
    for key, name, images, check in parts:
        try:
            line, is_here = _checked(key, name, images, check)
            lines.append(f"{key}: {line}")
            local &= is_here
        except ConfigError as error:
            problems += error.problems
    return Checked(lines, problems, local)


def _tensors(count: int) -> str:
    return f"{count} tensors make a whole model" if count else "its quantised weights were not looked at"


def _checked(key: str, name: str, images: bool, check: Callable[[str], str]) -> tuple[str, bool]:
    """A line about one model, and whether it is on this machine; a run downloads one of the hub that is not."""
    if Path(name).is_dir():
        return check(name), True
    folder = None if is_local(name) else hashes.folder_of(name)
    if folder is None:
        return f"{name} is not on this machine, so whether it loads is not known", False
    try:
        check_files(key, folder, images)
    except ConfigError as error:
        return f"{name} is not wholly on this machine, so whether it loads is not known ({error})", False
    return check(str(folder)), True
