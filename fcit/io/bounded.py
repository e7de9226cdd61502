"""Reading what others wrote, within bounds: neither memory nor the stack can be made to run out by a file."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import yaml

from fcit.errors import ConfigError

DEPTH = 64  # lists and mappings inside each other
YAML_LENGTH = 2**18  # characters of a configuration
YAML_NODES = 50_000  # its values, with every alias written out

#: The reader in C where PyYAML has it, ten times as fast; what it refuses is read again in Python.
LIBYAML = getattr(yaml, "CSafeLoader", None)

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 80, 80


def shown(value: Any) -> str:
    """A value as messages show it: never long, however large it is."""
    try:
        return _short.repr(value)
    except ValueError:  # Python prints no integer of thousands of digits
        return f"<{type(value).__name__} that is too long to show>"


def read_text(path: Path, most: int) -> str:
    """Text of an ordinary UTF-8 file of at most ``most`` bytes.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: not a file (a pipe or a device would be waited for), too large, or not UTF-8.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not an ordinary file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most:,} bytes, which is not read")
    return data.decode("utf-8")


def depth_problem(value: Any) -> str | None:
    """Why a JSON value is nested too deeply, or None; looks into it without recursion."""
    level, inner = 0, [value]
    while inner := [v for v in inner if isinstance(v, dict | list)]:
        level += 1
        if level > DEPTH:
            return f"nested more than {DEPTH} levels deep"
        inner = [v for outer in inner for v in (outer.values() if isinstance(outer, dict) else outer)]
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return mapping


def is_text(value: str) -> bool:
    """Whether a string is whole Unicode: JSON and YAML escapes can smuggle in halves of surrogate pairs."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str, unique: bool = False, constants: bool = False) -> Any:
    """JSON as the standard has it: no NaN, no number of thousands of digits.

    Nesting is bounded by :func:`depth_problem`, which the caller applies to the values it uses.

    Args:
        unique: refuse objects that name a key twice.
        constants: take NaN and Infinity, which Python and pandas write, as numbers.

    Raises:
        ValueError: anything else, ``json.JSONDecodeError`` where a place can be named.
    """
    try:
        refuse = None if constants else _no_constant
        return json.loads(text, parse_constant=refuse, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_twice(mapping: yaml.MappingNode) -> None:
    """Raise for a key that a mapping has twice: PyYAML would silently take the last one."""
    seen: dict[str, int] = {}
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in seen:
                raise yaml.YAMLError(f"{shown(key.value)} stands twice, in line {seen[key.value]} and in line {line}")
            seen[key.value] = line


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and depth of a YAML node with every alias written out; shared nodes are measured once."""
    if id(node) in known:
        if known[id(node)] == (0, 0):
            raise yaml.YAMLError("an alias stands inside what it names")
        return known[id(node)]
    known[id(node)] = (0, 0)  # being measured
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
        inner = [n for pair in node.value for n in pair]
    sizes = [_measure(n, known) for n in inner]
    size, depth = 1 + sum(s for s, _ in sizes), 1 + max((d for _, d in sizes), default=0)
    if size > YAML_NODES or depth > DEPTH:
        raise yaml.YAMLError(f"more than {YAML_NODES:,} values, or nested more than {DEPTH} levels deep")
    known[id(node)] = size, depth
    return size, depth


def _bound_depth(text: str, loader: type) -> None:
    """Raise for values nested too deeply, found without recursion: the composer in C has no bound of its own."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise _TooDeep("nested too deeply")


class _TooDeep(yaml.YAMLError):
    """Not to be read again in Python, which takes long to find out."""


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML document, which know their lines; None for an empty one.

    Aliases are measured before they are followed: ten lines of them can stand for billions of values.

    Raises:
        yaml.YAMLError: not YAML, too long, too deep, or a key that stands twice.
    """
    if len(text) > YAML_LENGTH:
        raise yaml.YAMLError(f"longer than {YAML_LENGTH:,} characters, which no configuration is")
    node = _in_python(text) if LIBYAML is None else _in_c(text, LIBYAML)
    if node is not None:
        _measure(node, {})
    return node


def _in_c(text: str, loader: type) -> yaml.Node | None:
    try:
        _bound_depth(text, loader)
        return yaml.compose(text, Loader=loader)
    except _TooDeep:
        raise
    except (yaml.YAMLError, ValueError):
        return _in_python(text)  # whose errors show the line


def _in_python(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """A YAML document of plain values.

    Raises:
        yaml.YAMLError: as :func:`compose`, or a value that its own tag does not fit.
    """
    node = compose(text)
    try:
        return None if node is None else yaml.constructor.SafeConstructor().construct_document(node)
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # What PyYAML's own constructors raise for values like 2024-99-99 or `!!int x`.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from None


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        ConfigError: it cannot be read or is not such a file.
    """
    try:
        text = read_text(path, YAML_LENGTH)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"cannot be read ({reason})", str(path)) from None
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", str(path)) from None


def is_file(path: Path) -> bool:
    """``path.is_file()``, also for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """``path.is_dir()``, also for names that no file system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def full_path(folder: Path, name: str) -> str:
    """The full path of a name relative to ``folder``; as it is where no path can be made of it."""
    try:
        return str((folder / Path(name).expanduser()).resolve())
    except (OSError, ValueError, RuntimeError):  # null bytes, links in a circle, an unknown user's home
        return name
