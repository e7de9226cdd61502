"""Reading a bench file: its keys, its blocks and the line of each."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from fcit import registry
from fcit.config import RunConfig, Section, settings
from fcit.errors import ConfigError
from fcit.io import bounded

#: Settings that the bench itself sets, and what to write instead.
OWN = {
    "name": "the bench names its runs; give the row a label:",
    "output": "the bench has one folder; use output: at the top of the file",
    "seed": "use seeds: at the top of the file or in the block",
}

Location = tuple[int | str, ...]
Seed = Annotated[int, Field(ge=0, strict=True)]


class Block(Section):
    """Rows of the table: the product of its axes."""

    set: dict[str, Any] = Field(default_factory=dict, description="overrides for every run of the block")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="settings and the values they take")
    seeds: list[Seed] | None = Field(None, min_length=1, description="default: those of the file")
    label: str | None = Field(None, min_length=1, description="with {axis} for values; default: the values joined")
    baseline: str | None = Field(
        None, min_length=1, description="of these rows, a label with {axis} as above; default: the file's"
    )


class BenchFile(Section):
    """The runs of a bench, and the row they are compared with."""

    name: str = Field(pattern=r"^[\w.-]+$", description="names the bench folder")
    base: str = Field(description="a run configuration, relative to this file")
    set: dict[str, Any] = Field(default_factory=dict, description="overrides for every run")
    seeds: list[Seed] = Field([0], min_length=1)
    baseline: str | None = Field(None, description="label of the row differences are taken to; default: the first row")
    jobs: int | None = Field(None, ge=1, description="runs at a time; default: one per GPU, else one per core")
    output: str = Field("runs/bench", description="folder that bench folders are made in, relative to the current one")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="short for one block of these axes")
    rows: list[Block] = Field(default_factory=list, description="blocks, one after the other")

    @model_validator(mode="after")
    def _something_to_run(self) -> BenchFile:
        if not self.axes and not self.rows:
            raise ValueError("needs rows: (a list of blocks) or axes:")
        return self


class Lines:
    """Line numbers of a YAML document by location, e.g. ``("rows", 0, "axes", "method", 1)``."""

    def __init__(self, text: str) -> None:
        self._at: dict[Location, int] = {(): 1}
        node = bounded.compose(text)
        if node is not None:
            self._walk(node, ())

    def _walk(self, node: yaml.Node, location: Location) -> None:
        self._at.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*location, str(key.value))
                self._at[inner] = key.start_mark.line + 1
                self._walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._walk(item, (*location, number))

    def of(self, location: Location) -> int:
        """The line of a location, or of the nearest thing around it."""
        while location not in self._at:
            location = location[:-1]
        return self._at[location]


class Problems:
    """Collects mistakes with their lines, to be raised together in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[int, str], None] = {}

    def add(self, line: int, text: str) -> None:
        """Add a mistake; duplicates are ignored."""
        self._found[line, text] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> ConfigError:
        """The error with all mistakes."""
        return ConfigError([f"line {line}: {text}" for line, text in sorted(self._found)], str(self.path))


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _inner(annotation: Any) -> Any:
    """``Section`` of ``Section | None``; anything else as it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((a for a in typing.get_args(annotation) if a is not type(None)), annotation)
    return annotation


def unknown_setting(key: str) -> str | None:
    """Why a bench may not vary ``key``, in one sentence, or None."""
    if key in OWN:
        return f"{key}: {OWN[key]}"
    kind: Any = RunConfig
    for part in key.split("."):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if part not in kind.model_fields:
                near = registry.nearest(key, [name for name, _, _ in settings() if name not in OWN])
                return f"{key}: no such setting{near} (see `fcit list settings`)"
            kind = _inner(kind.model_fields[part].annotation)
        elif typing.get_origin(kind) is not dict:
            return f"{key}: {key.rpartition('.')[0]} is one value and has no {part!r} (see `fcit list settings`)"
    return None


def _sentence(item: Any) -> str:
    """One error of pydantic as a sentence with key, value and allowed values."""
    location: Location = item["loc"]
    if not location:
        return str(item["msg"]).removeprefix("Value error, ")
    key = _dotted(location)
    if item["type"] == "extra_forbidden":
        allowed = sorted((Block if location[0] == "rows" else BenchFile).model_fields)
        return f"{key}: unknown key{registry.nearest(str(location[-1]), allowed)} (allowed: {', '.join(allowed)})"
    if item["type"] == "missing":
        return f"{key}: must be given"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{key}: {message}, got {item['input']!r}"


def _check_keys(raw: dict[str, Any], lines: Lines, problems: Problems) -> None:
    """Check the names of settings in ``set`` and ``axes`` of the file and its blocks."""
    blocks = raw.get("rows")
    places: list[tuple[Location, Any]] = [((), raw)]
    places += [(("rows", n), block) for n, block in enumerate(blocks if isinstance(blocks, list) else [])]
    for location, place in places:
        for family in ("set", "axes"):
            keys = place.get(family) if isinstance(place, dict) else None
            for key, value in keys.items() if isinstance(keys, dict) else ():
                line = lines.of((*location, family, str(key)))
                problem = unknown_setting(str(key))
                if problem is not None:
                    problems.add(line, f"{family}: {problem}")
                elif family == "axes" and value == []:
                    problems.add(line, f"axes.{key}: an axis needs at least one value")


def read(path: Path) -> tuple[BenchFile, Lines, Problems]:
    """The bench file, the lines of its keys, and the collection of mistakes.

    Raises:
        ConfigError: the file is missing or wrong; every mistake with its line.
    """
    if not bounded.is_file(path):
        near = sorted(p.name for p in path.parent.glob("[!.]*.yaml")) if path.parent.is_dir() else []
        hint = f" (there: {', '.join(near)})" if near else ""
        raise ConfigError(f"no such bench file{hint}", str(path))
    try:
        text = bounded.read_text(path, bounded.YAML_LENGTH)
        raw = bounded.parse_yaml(text)
        lines = Lines(text)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {error}", str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", str(path))
    problems = Problems(path)
    _check_keys(raw, lines, problems)
    try:
        file = BenchFile.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            problems.add(lines.of(item["loc"]), _sentence(item))
        raise problems.error() from None
    return file, lines, problems
