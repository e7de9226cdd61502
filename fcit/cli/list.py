"""``fcit list``: the names that can be chosen in configurations and benchmark files, and all settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fcit import registry
from fcit.cli.commands import Add
from fcit.errors import EXIT_OK

KINDS = [*registry.KINDS, "benchmark", "held-out"]
_WIDTH, _FAMILY = 20, 14  # characters of a name and of a family of methods


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "list",
        _list,
        "list methods, optimisers, scorers, benchmarks and all settings",
        "fcit list method\n  fcit list settings       every key of a configuration with its default",
        "Without a kind, all of them. † marks definitions of our own.",
    )
    command.add_argument("kind", nargs="?", type=_singular, choices=[*KINDS, "settings"], metavar="KIND", help=_kinds())


def _singular(word: str) -> str:
    """The kind that a word names, in the plural too."""
    return next((kind for kind in KINDS if word == f"{kind}s"), word)


def _kinds() -> str:
    return f"one of {', '.join([*KINDS, 'settings'])}"


def _list(args: argparse.Namespace) -> int:
    for kind in [args.kind] if args.kind else KINDS:
        print(f"{kind}:")
        for line in _settings() if kind == "settings" else _members(kind):
            print(f"  {line}".rstrip())
    return EXIT_OK


def _settings() -> Iterator[str]:
    from fcit.config import settings

    return (f"{key + ' = ' + default:44} {text}" for key, default, text in settings())


def _members(kind: str) -> Iterator[str]:
    """A line for each member of a kind: its name and what it is."""
    if kind in ("benchmark", "held-out"):
        from fcit.data.shipped import HELD_OUT, SHIPPED, shipped, summary

        names = shipped(SHIPPED if kind == "benchmark" else HELD_OUT)
        yield from (f"{name:{_WIDTH}} {summary(name)}" for name in names)
        return
    for name, place in registry.KINDS[kind].items():
        text, ours, family = registry.described(place)
        yield f"{name + ' †' * ours:{_WIDTH}} {f'{family:{_FAMILY}} ' if family else ''}{text}"
