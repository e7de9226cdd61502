"""``fcit check``: does a method or a federated optimiser keep its contract?"""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit import registry
from fcit.cli.commands import Add
from fcit.cli.completion import completed, parts
from fcit.errors import EXIT_FAILED, EXIT_OK, ConfigError

#: Kinds that have a contract, and what one of their parts is called.
KINDS = {"method": "method", "fedopt": "federated optimiser"}


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "check",
        _check,
        "check that a method or a federated optimiser keeps its contract",
        "fcit check ./mine.py:MyMethod strength=2",
        "Runs it on a toy federation, without a model: every hook that it overrides is called as in a run.",
    )
    name = command.add_argument("name", help="a registered name, package.module:Name or ./file.py:Name")
    completed(name, parts)
    command.add_argument("options", nargs="*", metavar="key=value", help="options of it, e.g. mix=argmax")


def _kind(name: str) -> str:
    """Which kind a name is of.

    Raises:
        ConfigError: of none.
    """
    problems = [registry.problem(kind, name) for kind in KINDS]
    for kind, problem in zip(KINDS, problems, strict=True):
        if problem is None:
            return kind
    reasons: dict[str, str] = {}  # a file that is not there is no method and no optimiser for one reason
    for kind, problem in zip(KINDS, problems, strict=True):
        reasons.setdefault(str(problem).removeprefix(f"{kind}: "), str(problem))
    raise ConfigError(list(reasons.values()), "check")


def _check(args: argparse.Namespace) -> int:
    from fcit import config as configuration
    from fcit.contracts import fedopts, methods

    kind = _kind(registry.anchored(args.name, Path.cwd()))
    overrides = [f"{kind}.{option}" for option in args.options]
    config = configuration.resolve({kind: args.name}, Path.cwd(), "check", overrides)
    options = dict(getattr(config, kind))
    name = options.pop("name")
    contract = methods if kind == "method" else fedopts
    label, (condition, values) = registry.label(name), contract.conditions(name)
    chosen = ", ".join(f"{key} {value}" for key, value in options.items())
    print(f"{KINDS[kind]} {label}{f' ({chosen})' if chosen else ''}, with {condition}: {', '.join(values)}")
    good = True
    for what, wrong in contract.check(name, options):
        good &= wrong is None
        print(f"{'ok  ' if wrong is None else 'FAIL'} {what}" + (f"\n     {wrong}" if wrong else ""))
    print(f"{label} {'keeps' if good else 'breaks'} the contract")
    return EXIT_OK if good else EXIT_FAILED
