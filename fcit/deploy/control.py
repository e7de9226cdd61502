"""`fcit deploy register`, `unregister`, `status` and `stop`: the operator's `flwr`, shown as it is run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

from rich.table import Table

from fcit.deploy import door
from fcit.deploy.deployment import CONNECTION, Deployment, parsed
from fcit.deploy.steps import DeployError, Steps
from fcit.deploy.watched import read_state, rows
from fcit.errors import ConfigError, DiskFull
from fcit.io.console import console

#: Below the deployment's folder: what `fcit deploy up` runs.
PROCESSES = "superlink/status.json"


class SuperLinkAway(DeployError):
    """The SuperLink is not up."""


def flwr(
    deployment: Deployment, *words: str, settings: tuple[str, ...] = (), steps: Steps | None = None
) -> dict[str, Any]:
    """Run a `flwr` command on this deployment's SuperLink and return its JSON output; shown if ``steps`` is given.

    Raises:
        SuperLinkAway: it is not up.
        DeployError: it refuses.
    """
    command = ["flwr", *words, CONNECTION, *settings, "--format", "json"]
    environment = deployment.environment(deployment.home)
    if steps is not None:
        steps.say(f"$ FLWR_HOME={deployment.home} {shlex.join(command)}")
        if steps.dry:
            return {}
    done = subprocess.run(command, env=environment, cwd=deployment.home, capture_output=True, text=True)
    output = parsed(done.stdout)
    if done.returncode == 0 and output.get("success"):
        return output
    reason = str(output.get("error-message") or done.stderr or done.stdout).strip() or f"code {done.returncode}"
    if "SuperLink is unavailable" in reason:
        raise SuperLinkAway(
            f"the SuperLink at 127.0.0.1:{deployment.superlink_port} does not answer; "
            f"`fcit deploy up {deployment.path}` starts it"
        )
    raise DeployError(f"flwr {' '.join(words[:2])}: {reason}")


def register(deployment: Deployment, names: list[str], steps: Steps) -> None:
    """Make sites' public keys known to the SuperLink, each under its site's name; default: all that are not yet.

    A key that is refused does not keep the others out.

    Raises:
        ConfigError: no key of that name.
        DeployError: keys were refused.
    """
    known = deployment.sites()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"no public key of site {', '.join(unknown)} in {deployment.home / 'keys'} "
            f"(there are: {', '.join(known)}); "
            f"`fcit deploy add {deployment.path} {' '.join(unknown)}` makes one"
        )
    for problem in door.admit(deployment, steps):
        steps.say(problem)
    nodes, refused = deployment.remembered("nodes"), dict[str, str]()
    for name in names or known:
        if name in nodes:
            steps.say(f"site {name} is registered already")
            continue
        key = str(deployment.public_key(name))
        try:
            output = flwr(deployment, "supernode", "register", key, "--name", name, steps=steps)
        except SuperLinkAway:
            raise
        except DeployError as error:
            refused[name] = str(error)
            continue
        if not steps.dry:
            nodes[name] = str(output["node-id"])
            deployment.remember("nodes", nodes)
            steps.say(f"site {name} is node {nodes[name]}")
    if refused:
        reasons = "; ".join(f"site {name}: {reason}" for name, reason in refused.items())
        raise DeployError(
            f"not registered: {reasons}. A key that was unregistered is refused for ever: for a new one move away "
            f"{deployment.path / 'sites'}/NAME and {deployment.home / 'keys'}/NAME.pub, then `fcit deploy add "
            f"{deployment.path} {' '.join(refused)}`"
        )


def unregister(deployment: Deployment, names: list[str], steps: Steps) -> None:
    """Unregister sites: their keys are refused for ever from now on.

    Raises:
        ConfigError: such a site is not registered.
    """
    nodes = deployment.remembered("nodes")
    unknown = [name for name in names if name not in nodes]
    if unknown:
        raise ConfigError(f"site {', '.join(unknown)} is not registered (registered: {', '.join(nodes) or 'none'})")
    for name in names:
        flwr(deployment, "supernode", "unregister", nodes[name], steps=steps)
        if not steps.dry:
            del nodes[name]
            deployment.remember("nodes", nodes)


def runs(deployment: Deployment, steps: Steps | None = None) -> list[dict[str, Any]]:
    """All runs, as `flwr ls` lists them."""
    return list(flwr(deployment, "ls", steps=steps).get("runs", []))


def unfinished(deployment: Deployment) -> list[str]:
    """Ids of runs that are not over."""
    return [str(run["run-id"]) for run in runs(deployment) if not str(run["status"]).startswith("finished")]


def status(deployment: Deployment, steps: Steps) -> None:
    """Show what runs here, sites and runs.

    Raises:
        SuperLinkAway: nothing runs; what was last wrong has been shown.
    """
    screen = console()
    state = None if steps.dry else read_state(deployment.path / PROCESSES)
    for name, runs_or_waits, last in [] if state is None else rows(state):
        fault = "" if last == "-" else f"; {last}"
        screen.print(f"{name}: {runs_or_waits}{fault}", soft_wrap=True, highlight=False, markup=False)
    nodes = {str(n["node-id"]): n for n in flwr(deployment, "supernode", "list", steps=steps).get("nodes", [])}
    started = runs(deployment, steps)
    if steps.dry:
        return
    registered, folders = deployment.remembered("nodes"), deployment.remembered("runs")
    sites = Table("site", "node", "status", "since", title=f"Sites at {deployment.door}", title_justify="left")
    for name in deployment.sites():
        node = nodes.get(registered.get(name, ""), {})
        state_of_node = str(node.get("status", "not registered"))
        since = {"online": "online-at", "offline": "offline-at"}.get(state_of_node, "created-at")
        sites.add_row(name, registered.get(name, "-"), state_of_node, str(node.get(since, "-")))
    screen.print(sites)
    # One line each, never cut: a folder is there to be copied into the next command.
    for run in started:
        number = str(run["run-id"])
        line = f"run {number}  {run['status']}  {folders.get(number, '-')}"
        screen.print(line, soft_wrap=True, highlight=False, markup=False)


def start(deployment: Deployment, run: Path, steps: Steps | None = None) -> str:
    """Give a run folder to the SuperLink and remember it; Flower's number of the run.

    On a full disk it is not remembered, and `follow` cannot find it later.

    Raises:
        DeployError: the SuperLink is not up or refuses.
    """
    output = flwr(deployment, "run", str(deployment.app), settings=("-c", f'run-dir="{run}"'), steps=steps)
    if steps is not None and steps.dry:
        return ""
    number = str(output["run-id"])
    try:
        deployment.remember("runs", {**deployment.remembered("runs"), number: str(run)})
    except DiskFull as error:
        said = steps or Steps()
        said.say(f"run {number} was started, but cannot be remembered for `fcit deploy follow`: {error}")
    return number


def stop(deployment: Deployment, run: str | None, steps: Steps) -> None:
    """End a run; its checkpoint stays.

    Raises:
        ConfigError: no or several runs are going on and none is named.
    """
    if run is None:
        going_on = [] if steps.dry else unfinished(deployment)
        if len(going_on) != 1 and not steps.dry:
            raise ConfigError(f"{len(going_on)} runs are going on: {', '.join(going_on) or 'nothing to stop'}")
        run = going_on[0] if going_on else "RUN-ID"
    flwr(deployment, "stop", run, steps=steps)
    if not steps.dry:
        folder = deployment.remembered("runs").get(run, "RUN-FOLDER")
        steps.say(f"stopped; `fcit deploy submit {deployment.path} --resume {folder}` goes on from the last checkpoint")
