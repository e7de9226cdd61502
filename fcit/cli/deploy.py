"""Arguments of ``fcit deploy``: the operator's side of a federation on separate machines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fcit.cli.commands import Add
from fcit.cli.completion import completed, overrides, run_folders, yaml_files
from fcit.errors import EXIT_OK, ConfigError

_EXAMPLE = """fcit deploy init /srv/fcit --clients 3 --host fcit.example.org
  fcit deploy up /srv/fcit                               # SuperLink and door, in the foreground
  fcit deploy register /srv/fcit
  fcit deploy submit /srv/fcit my-run.yaml federation.clients=3"""

_Work = Callable[[argparse.Namespace], int]


def _init(args: argparse.Namespace) -> int:
    from fcit.deploy.deployment import Deployment
    from fcit.deploy.init import init
    from fcit.deploy.steps import Steps

    plan = Deployment.plan(args.dir, args.host, args.port, args.bind, args.superlink_port)
    try:
        init(plan, args.clients, Steps(args.dry_run))
    except OSError as error:
        raise ConfigError(f"{args.dir}: cannot be filled ({error}); name a folder that can be written") from None
    return EXIT_OK


def _files(args: argparse.Namespace) -> int:
    from fcit.deploy import init
    from fcit.deploy.deployment import Deployment
    from fcit.deploy.steps import Steps

    deployment, steps = Deployment.open(args.dir), Steps(args.dry_run)
    if args.action == "add":
        init.add(deployment, args.names, steps)
    elif args.action == "renew":
        init.renew(deployment, steps)
    else:
        init.update(deployment, steps)
    return EXIT_OK


def _up(args: argparse.Namespace) -> int:
    from fcit.deploy.deployment import Deployment
    from fcit.deploy.steps import Steps
    from fcit.deploy.up import up

    return up(Deployment.open(args.dir), Steps(args.dry_run))


def _control(args: argparse.Namespace) -> int:
    from fcit.deploy import control
    from fcit.deploy.deployment import Deployment
    from fcit.deploy.steps import Steps

    deployment, steps = Deployment.open(args.dir), Steps(args.dry_run)
    if args.action == "register":
        control.register(deployment, args.names, steps)
    elif args.action == "unregister":
        control.unregister(deployment, args.names, steps)
    elif args.action == "status":
        control.status(deployment, steps)
    else:
        control.stop(deployment, args.run, steps)
    return EXIT_OK


def _submit(args: argparse.Namespace) -> int:
    from fcit.deploy import submit
    from fcit.deploy.deployment import Deployment
    from fcit.deploy.steps import Steps

    deployment, steps = Deployment.open(args.dir), Steps(args.dry_run)
    if args.resume is not None:
        if args.config is not None:
            raise ConfigError("submit takes either CONFIG or --resume RUN: a run folder has its own configuration")
        return submit.resume(deployment, args.resume, steps, args.accept_changed_data)
    if args.config is None:
        raise ConfigError("submit needs a configuration, or --resume RUN; see `fcit deploy submit --help`")
    return submit.submit(deployment, args.config, args.overrides, steps)


def _follow(args: argparse.Namespace) -> int:
    from fcit.deploy import submit
    from fcit.deploy.deployment import Deployment

    return submit.follow(Deployment.open(args.dir), args.run)


def arguments(add: Add) -> None:
    """Declare the command and its actions."""
    parser = add(
        "deploy",
        None,
        "the operator's side of a federation on separate machines",
        _EXAMPLE,
        "Make a folder (init), run the SuperLink (up), let sites in (register), submit a run; `--dry-run` only shows.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, work: _Work, text: str, dry: bool = True) -> argparse.ArgumentParser:
        command = actions.add_parser(name, help=text, description=text)
        command.set_defaults(work=work)
        command.add_argument("dir", type=Path, metavar="DIR", help="folder of the deployment")
        if dry:
            command.add_argument("--dry-run", action="store_true", help="show commands and files, do nothing")
        return command

    init = action("init", _init, "make authority, certificate, app, door, and a folder to hand over to each site")
    init.add_argument("--clients", type=int, required=True, metavar="N", help="sites, named 0 to N-1")
    init.add_argument("--host", required=True, help="name or address by which sites reach this machine")
    init.add_argument("--port", type=int, default=9092, help="port of the door (default: 9092)")
    init.add_argument("--bind", metavar="ADDRESS", help="listen here (default: --host if an address, else 0.0.0.0)")
    init.add_argument("--superlink-port", type=int, default=9091, help="loopback port (default: 9091)")
    more = action("add", _files, "make the folders of further sites")
    more.add_argument("names", nargs="+", metavar="NAME", help="client number of the new site")
    action("renew", _files, "make a new server certificate with the same authority")
    action("update", _files, "make the app anew after an update of fcit")
    action("up", _up, "run SuperLink and door in the foreground")
    register = action("register", _control, "let sites in: make their public keys known to the SuperLink")
    register.add_argument(
        "names", nargs="*", metavar="NAME", help="client numbers of sites (default: all that are not registered)"
    )
    unregister = action("unregister", _control, "shut sites out: their keys are refused from now on")
    unregister.add_argument("names", nargs="+", metavar="NAME", help="client number of a site")
    action("status", _control, "show which sites are online, and the runs")
    submit = action("submit", _submit, "run a configuration on the sites and follow it; exit codes as of fcit run")
    completed(submit.add_argument("config", type=Path, nargs="?", help="YAML file"), yaml_files)
    changes = submit.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    completed(changes, overrides)
    going_on = submit.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run folder instead")
    completed(going_on, run_folders)
    submit.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: go on although the server's data or own code have changed",
    )
    follow = action("follow", _follow, "show the events of a submitted run until it ends", dry=False)
    follow.add_argument("run", nargs="?", help="the SuperLink's run id (default: the last one submitted)")
    stop = action("stop", _control, "end a run; it can be resumed")
    stop.add_argument("run", nargs="?", help="the SuperLink's run id (default: the one that is going on)")
