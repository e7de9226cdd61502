"""``fcit list``: the names that can be chosen in configurations and benchmark files, and all settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fcit import registry
from fcit.cli.commands import Add
from fcit.errors import EXIT_OK

FAMILIES = [*registry.FAMILIES, "benchmark", "format"]
_WIDTH = 20  # characters of a name


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "list",
        _list,
        "list methods, optimisers, scorers, benchmarks and all settings",
        "fcit list method\n  fcit list settings       every key of a configuration with its default",
        "Without a family, all of them. † marks definitions of our own.",
    )
    command.add_argument("family", nargs="?", choices=[*FAMILIES, "settings"], metavar="FAMILY", help=_families())


def _families() -> str:
    return f"one of {', '.join([*FAMILIES, 'settings'])}"


def _list(args: argparse.Namespace) -> int:
    for family in [args.family] if args.family else FAMILIES:
        print(f"{family}:")
        for line in _settings() if family == "settings" else _members(family):
            print(f"  {line}".rstrip())
    return EXIT_OK


def _settings() -> Iterator[str]:
    from fcit.config import settings

    return (f"{key + ' = ' + default:44} {text}" for key, default, text in settings())


def _members(family: str) -> Iterator[str]:
    """A line for each member of a family: its name and what it is."""
    if family == "benchmark":
        from fcit.data.spec import read_spec, shipped

        yield from (f"{name:{_WIDTH}} {read_spec(name).description.strip()}" for name in shipped())
        return
    for name, place in _places(family).items():
        summary, ours = registry.described(place)
        yield f"{name + ' †' * ours:{_WIDTH}} {summary}"


def _places(family: str) -> dict[str, str]:
    """Where each member of a family is defined."""
    if family == "format":
        from fcit.data.formats import FORMATS

        return FORMATS
    return registry.FAMILIES[family]
