"""What the shell can complete: run folders, configurations, settings and names of parts.

A completer is called by argcomplete with the word typed so far and returns what it could become.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Completer = Callable[..., Iterable[str]]


def completed(action: argparse.Action, completer: Completer) -> argparse.Action:
    """The argument, with its completer where argcomplete looks for it."""
    action.completer = completer  # type: ignore[attr-defined]
    return action


def run_folders(prefix: str, **_: Any) -> Iterator[str]:
    """Run folders, and folders in which there may be some."""
    for folder in _beside(prefix):
        if folder.is_dir():
            run = (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()
            yield str(folder) if run else f"{folder}/"


def yaml_files(prefix: str, **_: Any) -> Iterator[str]:
    """Configurations and other YAML files, and folders in which there may be some."""
    for path in _beside(prefix):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix in (".yaml", ".yml"):
            yield str(path)


def overrides(prefix: str, **_: Any) -> Iterator[str]:
    """``key=`` of every setting; behind ``method=`` and the like the names that are allowed."""
    from fcit import registry
    from fcit.config import settings
    from fcit.data.shipped import shipped

    key, sign, _value = prefix.partition("=")
    parts = {"engine": "federation.engine", "trainer": "training.trainer"}
    values: dict[str, list[str]] = {parts.get(kind, kind): sorted(names) for kind, names in registry.KINDS.items()}
    values["benchmark"] = shipped()
    if sign:
        yield from (f"{key}={value}" for value in values.get(key, []))
    else:
        yield from (f"{name}=" for name, _default, _text in settings())


def parts(prefix: str, **_: Any) -> Iterator[str]:
    """Methods, federated optimisers and model families."""
    from fcit import registry

    yield from sorted({"family", *registry.METHODS, *registry.FEDOPTS, *registry.MODELS})


def _beside(prefix: str) -> Iterator[Path]:
    """What lies in the folder that is being typed."""
    folder, _, start = prefix.rpartition("/")
    base = Path(folder or ("/" if prefix.startswith("/") else ".")).expanduser()
    if base.is_dir():
        yield from sorted(path for path in base.iterdir() if path.name.startswith(start) and path.name[0] != ".")
