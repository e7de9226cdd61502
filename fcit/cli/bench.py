"""``fcit bench``: many runs and the table that compares them."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add
from fcit.cli.completion import completed, yaml_files

_EXAMPLE = """\
fcit bench configs/bench/demo.yaml --jobs 2
  fcit bench configs/bench/demo.yaml --rows disco --seeds 3,4           a row with more seeds
  fcit bench mine.yaml --from examples/benches/mini-ranks               beside rows that others have run
  fcit bench configs/bench/demo.yaml --table --into results             tables, and the finished runs for others"""


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "bench",
        _bench,
        "run a bench file: many runs, and the table that compares them",
        _EXAMPLE,
        "Runs what is missing and makes the tables anew; the same command goes on after an interruption.",
    )
    file = command.add_argument("file", type=Path, help="YAML file with base, seeds and axes or rows")
    completed(file, yaml_files)
    command.add_argument("--table", action="store_true", help="run nothing, only make the tables of what is finished")
    command.add_argument("--dry-run", action="store_true", help="list the runs, what is done, how long the rest takes")
    command.add_argument("--only", default="", metavar="TEXT", help="run only rows or folders whose name contains this")
    command.add_argument(
        "--rows", action="append", metavar="NAME", help="run only the row of this label (can be repeated)"
    )
    command.add_argument(
        "--seeds", metavar="N,N", help="run these seeds of the rows, also seeds that the file does not name"
    )
    command.add_argument("--jobs", type=int, help="runs at a time (default: the file's, else one per GPU or core)")
    command.add_argument(
        "--fresh", action="store_true", help="remove and repeat runs that the file no longer describes"
    )
    command.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="also copy the small results there, to be committed: tables, figures, finished runs without weights",
    )
    command.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="first take over finished runs that --into has put there, instead of repeating them",
    )


def _bench(args: argparse.Namespace) -> int:
    from fcit.bench.command import BenchOptions, bench

    return bench(
        BenchOptions(
            args.file,
            table=args.table,
            dry_run=args.dry_run,
            only=args.only,
            rows=tuple(args.rows or ()),
            seeds=args.seeds,
            jobs=args.jobs,
            fresh=args.fresh,
            into=args.into,
            source=args.source,
        )
    )
