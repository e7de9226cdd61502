"""``fcit list``: what can be chosen."""

from __future__ import annotations

import argparse

from fcit import registry
from fcit.cli.commands import Add
from fcit.errors import EXIT_OK

FAMILIES = [*registry.FAMILIES, "benchmark"]


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add("list", _list, "what can be chosen", "fcit list method")
    command.add_argument("family", nargs="?", choices=[*FAMILIES, "settings"])


def _list(args: argparse.Namespace) -> int:
    from fcit.data.spec import read_spec, shipped

    for family in [args.family] if args.family else FAMILIES:
        print(f"{family}:")
        if family == "settings":
            from fcit.config import settings

            for key, default, text in settings():
                print(f"  {key + ' = ' + default:44} {text}".rstrip())
            continue
        if family == "benchmark":
            for name in shipped():
                print(f"  {name:20} {read_spec(name).description.strip()}")
            continue
        for name in sorted(registry.FAMILIES[family]):
            part = registry.resolve(family, name)
            text = getattr(part, "summary", "") or (part.__doc__ or "").strip().splitlines()[0]
            sign = " †" if getattr(part, "dagger", False) else ""  # our own definition
            print(f"  {name + sign:20} {text}")
    return EXIT_OK
