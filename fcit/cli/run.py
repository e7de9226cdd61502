"""``fcit run`` and ``fcit resume``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fcit.cli.commands import Add
from fcit.cli.completion import completed, overrides, run_folders, yaml_files
from fcit.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from fcit.config import RunConfig
    from fcit.data.stream import Stream


_TEXT = """\
Prepares and checks the data, makes the run folder OUTPUT/NAME-N, trains and evaluates stage by stage, and writes
report.html into the folder. An interrupted run goes on with `fcit resume RUN`; `fcit report RUN RUN ...` compares."""
_EXAMPLE = """\
fcit run configs/demo-disco.yaml                                    four stages, about a minute on a CPU
  fcit run configs/task-disco.yaml seed=1 federation.beta=0.5         settings changed for this run
  fcit run configs/task-disco.yaml method=./mine.py:MyMethod          a method of your own
  fcit run configs/demo-disco.yaml --dry-run                          first: what would be done, and does it fit
  fcit doctor --config configs/24gb/disco.yaml                        the same for a machine that is not here"""
_RESUMED = "The run goes on from its last checkpoint and ends with the same bits as if it had not been interrupted."


def arguments(add: Add) -> None:
    """Declare both commands."""
    run = add("run", _run, "run a configuration", _EXAMPLE, _TEXT)
    config = run.add_argument("config", type=Path, help="YAML file; shipped ones are in configs/")
    completed(config, yaml_files)
    changes = run.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change a setting for this run, e.g. training.lr=0.002 (all: `fcit list settings`)",
    )
    completed(changes, overrides)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be done (stages, clients, orders, bytes, memory, time by the estimate of `fcit doctor`); "
        "nothing is trained and no run folder is made",
    )
    resume = add("resume", _resume, "go on with an interrupted run", "fcit resume runs/task-disco-1", _RESUMED)
    completed(resume.add_argument("run", type=Path, help="run folder"), run_folders)
    resume.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although the data or code of your own have changed; everything that shows the run says so",
    )


def _run(args: argparse.Namespace) -> int:
    from fcit import config as configuration
    from fcit.config import async_checks
    from fcit.data.stream import open_stream
    from fcit.runs.create import create

    config = configuration.load(args.config, args.overrides)
    if problem := async_checks.simulated(config):
        raise ConfigError(problem, str(args.config))
    if args.dry_run:
        return _dry(config)
    stream = open_stream(config)
    print(f"preparing data{f' under {stream.root}' if stream.root else ''}", file=sys.stderr)
    path = create(config, stream).path
    print(f"run folder {path.resolve()}", file=sys.stderr)
    return _execute(path, prepared=(config, stream))


def _dry(config: RunConfig) -> int:
    """Show what a run would do and need.

    Raises:
        ConfigError: it cannot fit, or something that it names cannot be used.
    """
    from fcit.doctor import plan
    from fcit.doctor.command import doctor
    from fcit.io.console import console
    from fcit.runs.environment import own_packages_first
    from fcit.runs.trackers import check

    own_packages_first()
    check(config)
    plan.show(config, console())
    code = doctor(config, None, False, console())
    print(f"nothing was trained; without --dry-run the run folder would be {config.output}/{config.name}-N")
    return code


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


def _execute(path: Path, accept_changed_data: bool = False, prepared: tuple[RunConfig, Stream] | None = None) -> int:
    """Run or resume a run folder on its engine; print the final table. ``prepared``: of a folder made just now."""
    from fcit.io.console import console
    from fcit.report import terminal
    from fcit.runs.progress import ConsoleWatcher
    from fcit.simulation import execute

    try:
        run = execute(path, ConsoleWatcher(console(), path.name), accept_changed_data, prepared, alone=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted; `fcit resume {path}` goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    terminal.ending(console(), run)
    return EXIT_OK
