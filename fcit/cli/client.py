"""``fcit client``: a site of a federation on separate machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add, print_checks
from fcit.cli.completion import completed, yaml_files


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "client",
        _client,
        "a site of a federation on separate machines",
        "fcit client check SITE.yaml\n  fcit client start SITE.yaml\n  fcit client status SITE.yaml\n"
        "  fcit client audit SITE.yaml",
        "SITE.yaml comes with the folder that the operator hands over (`fcit deploy init`).",
    )
    command.add_argument(
        "action",
        choices=["start", "check", "status", "audit"],
        help="run the site in the foreground; check SITE.yaml, data and connection; say what runs and what was wrong "
        "with it; verify and print what was sent",
    )
    site = command.add_argument("site", type=Path, metavar="SITE.yaml", help="the site's configuration")
    completed(site, yaml_files)


def _client(args: argparse.Namespace) -> int:
    from fcit.runs.environment import own_packages_first

    own_packages_first()
    if args.action == "start":
        from clients.site.supervisor import start

        return start(args.site)
    if args.action == "audit":
        from clients.site.audit import command

        return command(args.site)
    if args.action == "status":
        from clients.site.status import status

        return print_checks(status(args.site))
    from clients.site.check import check

    return print_checks(check(args.site))
