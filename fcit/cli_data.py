"""``fcit data``: render the built-in data sets, download a published benchmark, check what lies on disk."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fcit.errors import EXIT_OK, EXIT_USAGE, ConfigError

if TYPE_CHECKING:
    from fcit.data.inspection import Findings
    from fcit.data.spec import BenchmarkSpec

EXAMPLE = """\
fcit data make --root /tmp/fcit-data            render the built-in data sets
  fcit data download fcit-task --root /data/fcit  what the hub has, and where the rest is to be had
  fcit data check fcit-task --root /data/fcit     files, records, a sample of images, the partition
  fcit data check fcit-task --root /data/fcit --all --json   every image; findings as JSON

exit codes of check: 0 every setting asked for can run, 2 something is missing or broken"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of ``fcit data``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    make = actions.add_parser("make", help="render the built-in data sets")
    make.add_argument("--root", type=Path, help="data root (default: the cache folder)")
    make.add_argument("--dataset", action="append", help="only this one (can be repeated)")
    make.set_defaults(work=_make)

    download = actions.add_parser(
        "download", help="fetch what is on the Hugging Face hub, say where the rest is; goes on after an interruption"
    )
    check = actions.add_parser("check", help="look at a benchmark's files and say what is missing or broken")
    for action, work in ((download, _download), (check, _check)):
        action.add_argument("benchmark", help="a shipped benchmark (see `fcit list benchmark`) or a YAML file")
        action.add_argument("--root", type=Path, required=True, help="data root")
        action.set_defaults(work=work)
    check.add_argument("--all", action="store_true", help="decode every image and read every client file")
    check.add_argument("--setting", choices=["homogeneous", "heterogeneous"], help="only this one (default: both)")
    check.add_argument("--beta", action="append", help="only this partition (can be repeated; default: 0.5, 1.0, 5.0)")
    check.add_argument("--clients", type=int, default=50, help="client files a delivered partition must have")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def _make(args: argparse.Namespace) -> int:
    from rich.progress import track

    from fcit.data.benchmark import cache_folder
    from fcit.data.mini.render import FOLDERS, VERSION, ensure

    root = args.root or cache_folder() / VERSION
    names = args.dataset or list(FOLDERS)
    for name in track(names, description="rendering", disable=not sys.stderr.isatty()):
        if name not in FOLDERS:
            raise ConfigError(f"--dataset: no mini dataset {name!r} (there are: {', '.join(FOLDERS)})")
        ensure(name, root)
        print(f"{name}: {root / 'instructions' / FOLDERS[name]}")
    return EXIT_OK


def _spec(name: str) -> BenchmarkSpec:
    from fcit.data.spec import read_spec

    spec = read_spec(name)
    if spec.source == "mini":
        raise ConfigError(f"benchmark: {name!r} is rendered when it is first used; `fcit data make` does it now")
    return spec


def _download(args: argparse.Namespace) -> int:
    from fcit.data.download import download

    spec = _spec(args.benchmark)
    args.root.mkdir(parents=True, exist_ok=True)
    download(spec, args.root, lambda text: print(text, flush=True))
    again = f"fcit data check {args.benchmark} --root {args.root} --all"
    print(f"checking {args.root} with a sample of the images; `{again}` looks at all")
    return _report(_look(args, spec))


def _check(args: argparse.Namespace) -> int:
    spec = _spec(args.benchmark)
    if not args.root.is_dir():
        raise ConfigError(f"--root: no folder {args.root}; `fcit data download {args.benchmark} --root ...` fills one")
    found = _look(args, spec)
    if args.json:
        print(json.dumps(found.to_json(), indent=1))
        return EXIT_OK if found.good else EXIT_USAGE
    return _report(found)


def _look(args: argparse.Namespace, spec: BenchmarkSpec) -> Findings:
    from fcit.data.benchmark import cache_folder
    from fcit.data.inspection import BETAS, SETTINGS, Inspection

    wanted = getattr(args, "setting", None)
    if wanted == "heterogeneous" and not spec.heterogeneous:
        raise ConfigError(f"--setting: benchmark {spec.name!r} defines no heterogeneous stages")
    try:
        betas = [str(float(beta)) for beta in getattr(args, "beta", None) or BETAS]
    except ValueError:
        raise ConfigError(f"--beta: {args.beta} must be numbers, e.g. --beta 0.5") from None
    every, clients = getattr(args, "all", False), getattr(args, "clients", 50)
    look = Inspection(spec, args.root, cache_folder(), every, clients)
    return look.look([wanted] if wanted else SETTINGS, betas)


def _report(found: Findings) -> int:
    """Print tables of the findings and their first problems in words; the exit code says whether all is well."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{found.benchmark} under {found.root}")
    left = ("data set", "format", "")
    for column in ("data set", "format", "files", "train", "test", "images looked at", "bad images", "bad records", ""):
        table.add_column(column, justify="left" if column in left else "right")
    for d in found.datasets:
        there = sum(size is not None for size in d.files.values())
        numbers = [f"{n:,}" if n is not None else "?" for n in (d.train, d.test, d.images, d.bad_images, d.bad_records)]
        table.add_row(d.name, d.format or "?", f"{there}/{len(d.files)}", *numbers, "ok" if d.good else "FAIL")
    console.print(table)
    table = Table(title="what can run")
    for column in ("setting", "beta", "client files", "", ""):
        table.add_column(column)
    for s in found.settings:
        table.add_row(s.setting, s.beta, s.partition, "ok" if s.runs else "FAIL", s.why)
    console.print(table)
    problems = [p for d in found.datasets for p in d.problems] + [p for part in found.partitions for p in part.problems]
    for problem in problems:
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK if found.good else EXIT_USAGE
