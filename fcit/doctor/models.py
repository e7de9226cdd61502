"""Whether the models of a configuration would load whole: the checks of a run, without reading their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models import hashes, identity, loading
from fcit.models.checking import check_files, is_local


@dataclass(frozen=True)
class Checked:
    """What was found of model and identity encoder."""

    said: list[str]  # one line for each
    problems: list[str]
    looked: bool  # whether both are on this machine, so that they could be looked at


def check_models(backbone: configuration.Backbone, sees: bool) -> Checked:
    """Look at files, headers of weights, words and end tokens of both models, as far as they are here.

    Args:
        sees: whether the identity encoder looks at images, too.
    """
    source, encoder = loading.locate(backbone.model, backbone.identity)

    def model(folder: str) -> str:
        found = loading.inspect(folder, backbone)
        ends = " or ".join(found.tokenizer.convert_ids_to_tokens(found.ends))
        return f"{_tensors(found.tensors)}; an answer ends at {ends}"

    def clip(folder: str) -> str:
        found = identity.inspect(folder, sees)
        return f"{_tensors(found.tensors)}; a text ends at {found.tokenizer.eos_token}"

    parts = [("backbone.model", source, True, model), ("backbone.identity", encoder, sees, clip)]
    said, problems, looked = [], [], True
    for key, name, pictures, look in parts:
        try:
            line, here = _looked(key, name, pictures, look)
            said.append(f"{key}: {line}")
            looked &= here
        except ConfigError as error:
            problems += error.problems
    return Checked(said, problems, looked)


def _tensors(count: int) -> str:
    return f"{count} tensors make a whole model" if count else "its quantised weights were not looked at"


def _looked(key: str, name: str, pictures: bool, look: Callable[[str], str]) -> tuple[str, bool]:
    """What is said of one model, and whether it is here; what a hub's name lacks here is downloaded by a run."""
    if Path(name).is_dir():
        return look(name), True
    folder = None if is_local(name) else hashes.folder_of(name)
    if folder is None:
        return f"{name} is not on this machine, so whether it loads is not known", False
    try:
        check_files(key, folder, pictures)
    except ConfigError as error:
        return f"{name} is not wholly on this machine, so whether it loads is not known ({error})", False
    return look(str(folder)), True
