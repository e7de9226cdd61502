"""``fcit check``: does a method, a federated optimiser or a model family keep its contract?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from fcit import registry
from fcit.cli.commands import Add
from fcit.cli.completion import completed, parts
from fcit.errors import EXIT_FAILED, EXIT_OK, ConfigError

#: Kinds that have a contract, and what one of their parts is called.
KINDS = {"method": "method", "fedopt": "federated optimiser", "model": "family"}

_TEXT = """\
A method or an optimiser runs on a toy federation, without a model: every hook that it overrides is called as in a
run. A family's small model with random weights is compared with transformers' own forward and generate."""


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "check",
        _check,
        "check that a method, a federated optimiser or a model family keeps its contract",
        "fcit check ./mine.py:MyMethod strength=2\n  fcit check family ./mine.py:MyFamily",
        _TEXT,
    )
    name = command.add_argument(
        "name", help="a registered name, package.module:Name or ./file.py:Name; `family NAME` for a family of models"
    )
    completed(name, parts)
    command.add_argument("options", nargs="*", metavar="key=value", help="options of it, e.g. mix=argmax")


def _kind(name: str) -> str:
    """Which kind a name is of.

    Raises:
        ConfigError: of none.
    """
    reasons: dict[str, str] = {}  # a file that is not there is none of them for one reason
    for kind in KINDS:
        problem = registry.problem(kind, name)
        if problem is None:
            return kind
        reasons.setdefault(problem.removeprefix(f"{kind}: "), problem)
    raise ConfigError(list(reasons.values()), "check")


def _check(args: argparse.Namespace) -> int:
    if args.name == KINDS["model"]:
        return _check_family(args.options)
    kind = _kind(registry.anchored(args.name, Path.cwd()))
    return _check_family([args.name, *args.options]) if kind == "model" else _check_part(args, kind)


def _check_family(words: Sequence[str]) -> int:
    from fcit.contracts import families

    if len(words) != 1:
        known = ", ".join(sorted(registry.MODELS))
        raise ConfigError(f"check: name one family, without options: one of {known}, or ./file.py:Name")
    name = registry.anchored(words[0], Path.cwd())
    problem = registry.problem("model", name)
    if problem is not None:
        raise ConfigError(problem)
    condition, values = families.conditions(name)
    print(f"family {registry.label(name)}, a small model with random weights, with {condition}: {', '.join(values)}")
    return _said(registry.label(name), families.check(name))


def _check_part(args: argparse.Namespace, kind: str) -> int:
    from fcit import config as configuration
    from fcit.contracts import fedopts, methods

    overrides = [f"{kind}.{option}" for option in args.options]
    config = configuration.resolve({kind: args.name}, Path.cwd(), "check", overrides)
    options = dict(getattr(config, kind))
    name = options.pop("name")
    contract = methods if kind == "method" else fedopts
    label, (condition, values) = registry.label(name), contract.conditions(name)
    chosen = ", ".join(f"{key} {value}" for key, value in options.items())
    print(f"{KINDS[kind]} {label}{f' ({chosen})' if chosen else ''}, with {condition}: {', '.join(values)}")
    return _said(label, contract.check(name, options))


def _said(label: str, checks: Iterable[tuple[str, str | None]]) -> int:
    """Print what was checked and what is wrong; returns the exit code."""
    good = True
    for what, wrong in checks:
        good &= wrong is None
        print(f"{'ok  ' if wrong is None else 'FAIL'} {what}" + (f"\n     {wrong}" if wrong else ""), flush=True)
    print(f"{label} {'keeps' if good else 'breaks'} the contract")
    return EXIT_OK if good else EXIT_FAILED
