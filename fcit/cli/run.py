"""``fcit run`` and ``fcit resume``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fcit.cli.commands import Add
from fcit.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from fcit.config import RunConfig


def arguments(add: Add) -> None:
    """Declare both commands."""
    run = add("run", _run, "run a configuration", "fcit run configs/task-disco.yaml seed=1 federation.beta=0.5")
    run.add_argument("config", type=Path, help="YAML file")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting, e.g. training.lr=0.002")
    resume = add("resume", _resume, "go on with an interrupted run", "fcit resume runs/task-disco-1")
    resume.add_argument("run", type=Path, help="run folder")
    resume.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although data or own code are not what they were; the run says so from then on",
    )


def _run(args: argparse.Namespace) -> int:
    from fcit import config as configuration
    from fcit.data.stream import open_stream
    from fcit.runs.create import create

    config = configuration.load(args.config, args.overrides)
    stream = open_stream(config)
    print(f"preparing data{f' under {stream.root}' if stream.root else ''}", file=sys.stderr)
    path = create(config, stream).path
    print(f"run folder {path.resolve()}", file=sys.stderr)
    return _execute(path, config=config)


def _resume(args: argparse.Namespace) -> int:
    from fcit.runs.folder import BELONGS, RunDir

    run = RunDir.open(args.run)
    if run.results.is_file():
        print(f"{args.run} is already finished; `fcit report {args.run}` shows it")
        return EXIT_OK
    belongs = run.path / BELONGS
    if belongs.is_file():
        deployment = belongs.read_text(encoding="utf-8").strip()
        also = " --accept-changed-data" * args.accept_changed_data
        raise ConfigError(
            f"{args.run} is run on sites; `fcit deploy submit {deployment} --resume {args.run}{also}` goes on"
        )
    return _execute(args.run, args.accept_changed_data)


def _execute(path: Path, accept_changed_data: bool = False, config: RunConfig | None = None) -> int:
    """Run or resume a run folder on its engine; print the final table. ``config``: of a folder made just now."""
    from fcit.io.console import console
    from fcit.report import terminal
    from fcit.runs.progress import ConsoleWatcher
    from fcit.simulation import execute

    with ConsoleWatcher(console(), path.name) as watcher:
        try:
            run = execute(path, watcher, accept_changed_data, config)
        except KeyboardInterrupt:
            print(f"\ninterrupted; `fcit resume {path}` goes on from the last checkpoint", file=sys.stderr)
            return EXIT_INTERRUPTED
    terminal.ending(console(), run)
    return EXIT_OK
