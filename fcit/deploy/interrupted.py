"""A run that ended with the process that carried it: found when `fcit deploy up` starts, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcit.deploy import app
from fcit.deploy.control import flwr, runs, start, unfinished
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import DeployError, Steps
from fcit.runs.folder import RunDir

#: What Flower (1.41 and 1.42) says of a run whose process ended without a word, and of one whose process had only time
#: to say that it ends; and what our server says when it was told to. A run that failed by itself has its own reason.
_CUT_OFF = ("No heartbeat received from the task", "Task failed with unknown error.", "stopped by SIGTERM")


def go_on(deployment: Deployment, steps: Steps) -> None:
    """Submit the last run again if it was going on when its process ended; it resumes from its checkpoint.

    Runs that have finished, were stopped, or have failed for a reason are left alone. What cannot be done is said.
    """
    try:
        _go_on(deployment, steps)
    except DeployError as error:
        steps.say(f"the run that was going on is not resumed: {error}")


def _go_on(deployment: Deployment, steps: Steps) -> None:
    known = deployment.remembered("runs")
    if not known:
        return
    number, folder = list(known.items())[-1]
    if not Path(folder).is_dir() or RunDir(Path(folder)).results.is_file():
        return
    run = next((run for run in runs(deployment) if str(run["run-id"]) == number), None)
    if run is None or not _interrupted(run):
        return
    if app.differs(deployment):
        steps.say(
            f"run {number} was interrupted and is not resumed, as fcit was updated meanwhile: `fcit deploy update "
            f"{deployment.path}`, then `fcit deploy submit {deployment.path} --resume {folder}`"
        )
        return
    submitted = start(deployment, Path(folder))
    if not str(run["status"]).startswith("finished"):
        _stop(deployment, number, steps)  # last: whoever follows it finds the new one
    steps.say(
        f"run {number} was interrupted; it goes on from its last checkpoint as run {submitted}: "
        f"`fcit deploy follow {deployment.path}`"
    )


def _stop(deployment: Deployment, number: str, steps: Steps) -> None:
    """End a run without a process, unless the SuperLink has noticed meanwhile that it has none."""
    try:
        flwr(deployment, "stop", number)
    except DeployError as error:
        if number in unfinished(deployment):
            steps.say(f"run {number} has no process and is not ended: {error}; `fcit deploy stop {deployment.path}`")


def _interrupted(run: dict[str, Any]) -> bool:
    if str(run["status"]) == "finished:failed":
        return cut_off(str(run.get("status-details")))
    return str(run["status"]) in ("starting", "running")


def cut_off(details: str) -> bool:
    """Whether a failed run was going on when its process ended, by what Flower says of its end."""
    return any(words in details for words in _CUT_OFF)
