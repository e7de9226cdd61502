"""A run that ended with the process that carried it: found when `fcit deploy up` starts, or while it runs, and gone on
with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcit.deploy import app
from fcit.deploy.control import SuperLinkAway, flwr, runs, start, unfinished
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import DeployError, Steps
from fcit.runs.folder import RunDir

#: What Flower (1.41 and 1.42) says of a run whose process ended without a word, and of one whose process had only time
#: to say that it ends; and what our server says when it was told to. A run that failed by itself has its own reason.
_CUT_OFF = ("No heartbeat received from the task", "Task failed with unknown error.", "stopped by SIGTERM")


def go_on(deployment: Deployment, steps: Steps, tried: dict[str, str] | None = None) -> bool:
    """Submit the last run again if it was going on when its process ended; it resumes from its checkpoint.

    Runs that have finished, were stopped, or have failed for a reason are left alone. What cannot be done is said.

    Args:
        tried: given where only the run's own process can have ended. A run that Flower takes for running has it then,
            and one that has ended a second time without a checkpoint in between is left alone. Run folders with their
            newest checkpoint at the last try; added to in place.

    Returns:
        Whether the SuperLink could be asked; that it could not is not said if it is to be asked again (``tried``).
    """
    try:
        _go_on(deployment, steps, tried)
    except SuperLinkAway as error:
        if tried is None:
            steps.say(f"the run that was going on is not resumed: {error}")
        return False
    except DeployError as error:
        steps.say(f"the run that was going on is not resumed: {error}")
    return True


def _go_on(deployment: Deployment, steps: Steps, tried: dict[str, str] | None) -> None:
    known = deployment.remembered("runs")
    if not known:
        return
    number, folder = list(known.items())[-1]
    if not Path(folder).is_dir() or RunDir(Path(folder)).results.is_file():
        return
    listed = runs(deployment)
    run = next((run for run in listed if str(run["run-id"]) == number), None)
    if run is None or not _interrupted(run, tried is not None):
        return
    if tried is not None:
        if any(not str(other["status"]).startswith("finished") for other in listed):
            return  # somebody has resumed it, or begun another one
        newest = max((file.parent.name for file in RunDir(Path(folder)).state.glob("*/state.json")), default="")
        if tried.get(folder) == newest:
            steps.say(
                f"run {number} has lost its process again, without a checkpoint since it was resumed, and is left "
                f"alone; `fcit deploy submit {deployment.path} --resume {folder}` goes on"
            )
            return
        tried[folder] = newest
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


def _interrupted(run: dict[str, Any], alone: bool) -> bool:
    if str(run["status"]) == "finished:failed":
        return cut_off(str(run.get("status-details")))
    return not alone and str(run["status"]) in ("starting", "running")


def cut_off(details: str) -> bool:
    """Whether a failed run was going on when its process ended, by what Flower says of its end."""
    return any(words in details for words in _CUT_OFF)
