"""Settings of a row as dotted keys, and their values in labels and folder names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from fcit import config as configuration
from fcit import registry


def text_of(value: Any) -> str:
    """A value in a label: the name of a part, followed by its options."""
    if isinstance(value, dict):
        head = [registry.label(str(value["name"]))] if "name" in value else []
        return " ".join([*head, *(f"{k}={text_of(v)}" for k, v in value.items() if k != "name")])
    return registry.label(value) if isinstance(value, str) else json.dumps(value)


def named(key: str, value: Any) -> str:
    """An axis value in a default label; numbers and nested settings with their key."""
    plain = isinstance(value, dict) or (isinstance(value, str) and "." not in key)
    return text_of(value) if plain else f"{key.rpartition('.')[2]}={text_of(value)}"


def slug(text: str) -> str:
    """A text as part of a folder name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "row"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


class Overrides:
    """Settings of one row by dotted key, with their lines; later ones take precedence."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, Any] = {}
        self._lines: dict[str, int] = {}

    def add(self, key: str, value: Any, line: int) -> None:
        """Add a setting; a mapping adds its keys."""
        if isinstance(value, dict) and value:
            for inner, inner_value in value.items():
                self.add(f"{key}.{inner}", inner_value, line)
            return
        if key in ("method", "fedopt") and isinstance(value, str):
            key = f"{key}.name"
        self.values[key] = self._anchored(key, value)
        self._lines[key] = line

    def _anchored(self, key: str, value: Any) -> Any:
        """Resolve file names relative to the bench file."""
        section, _, name = key.partition(".")
        nested = configuration.anchored({section: {name: value} if name else value}, self.folder)[section]
        return nested[name] if name else nested

    def texts(self) -> list[str]:
        """As ``key=value``; the name of a part before its options."""
        ordered = sorted(self.values.items(), key=lambda item: not item[0].endswith(".name"))
        return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for key, value in ordered]

    def line(self, problem: str, otherwise: int) -> int:
        """The line of the setting that an error message beginning with a key refers to."""
        key = problem.partition(":")[0]
        for given, line in self._lines.items():
            short = given.removesuffix(".name")
            if key in (given, short) or key.startswith(f"{short}.") or given.startswith(f"{key}."):
                return line
        return otherwise
