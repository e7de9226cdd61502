"""``fcit doctor``: is this machine fit, and what will a run need?"""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add, print_checks
from fcit.cli.completion import completed, overrides, yaml_files
from fcit.errors import ConfigError


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "doctor",
        _doctor,
        "check this machine and the built-in model; with --config, what a run needs",
        "fcit doctor --config configs/24gb/disco.yaml data_root=/data/fcit --gpu-gb 24",
        "Without --config: libraries, devices, and an answer of the built-in model. With it: memory, disk and\n"
        "time of the run, and whether its model can be loaded; nothing is downloaded.",
    )
    config = command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="memory, disk and time of this configuration; exit code 2 if it cannot fit",
    )
    completed(config, yaml_files)
    changes = command.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of it")
    completed(changes, overrides)
    command.add_argument("--gpu-gb", type=float, metavar="GB", help="memory of the GPU (default: as here, else 24)")
    command.add_argument("--no-probe", action="store_true", help="estimate time from FLOPs; load and run nothing")


def _doctor(args: argparse.Namespace) -> int:
    from fcit.doctor.machine import check
    from fcit.runs.environment import own_packages_first

    own_packages_first()
    if args.config is None:
        if args.overrides or args.gpu_gb or args.no_probe:
            raise ConfigError("doctor: name the configuration, e.g. fcit doctor --config configs/24gb/disco.yaml")
        return print_checks(check())
    from fcit import config as configuration
    from fcit.doctor.command import doctor
    from fcit.io.console import console

    config = configuration.load(args.config, args.overrides)
    return doctor(config, args.gpu_gb, not args.no_probe, console())
