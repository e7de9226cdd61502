"""The Flower ServerApp: reads the run's configuration, runs the loop on the grid it is given."""

from __future__ import annotations

import shlex
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.data.stream import Stream, open_stream
from fcit.errors import ConfigError, StopRequested
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.models.judging import judge_of
from fcit.runs.alone import alone
from fcit.runs.environment import describe
from fcit.runs.folder import BELONGS, RunDir
from fcit.runs.recorded import hold_data
from fcit.runs.trackers import Trackers, Watcher, check
from server.loop import Loop
from server.stop import Stop

app = ServerApp()
#: Seconds in which the process of a run that was stopped, or given up by Flower, has ended: it hears of that with its
#: next call, after half a minute at most, and is given five seconds then (flwr 1.42).
_OVERLAP = 120.0


def _stop_on_signals(stop: Stop, run: Path) -> dict[int, Any]:
    """SIGTERM and SIGUSR1 end the run after the reply at hand; accepted updates are kept."""

    def request(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        stop.request = StopRequested(f"stopped by {name}; `fcit resume {run}` goes on from the checkpoint")

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGUSR1)}


def run(
    path: Path,
    grid: Grid,
    watcher: Watcher | None = None,
    accept_changed_data: bool = False,
    prepared: tuple[RunConfig, Stream] | None = None,
    patience: float = 0.0,
) -> AccuracyMatrix:
    """Run (or resume) the run folder ``path`` on a grid; the watcher and the configured trackers get every event.

    Args:
        prepared: configuration and prepared stream of a new run folder; by default both are read from disk.
        patience: seconds in which another process that is at work on it may end.

    Raises:
        ConfigError: data or code have changed since the run began, unless that is accepted; or another process is at
            work on it.
    """
    run_dir = RunDir.open(path)
    with alone(run_dir, patience):
        return _run(run_dir, grid, watcher, accept_changed_data, prepared)


def _run(
    run_dir: RunDir,
    grid: Grid,
    watcher: Watcher | None,
    accept_changed_data: bool,
    prepared: tuple[RunConfig, Stream] | None,
) -> AccuracyMatrix:
    # A benchmark of the user's own may be bound to another configuration than the run's.
    config, stream = prepared or _prepared(run_dir)
    hold_data(run_dir, stream, accept_changed_data)
    trackers = Trackers(run_dir, config, watcher)
    stop = Stop()
    before = _stop_on_signals(stop, run_dir.path)
    try:
        return Loop(config, stream, run_dir, grid, trackers, stop).start()
    finally:
        trackers.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepared(run: RunDir) -> tuple[RunConfig, Stream]:
    """Configuration and stream of a run folder, its records checked with the model's tokenizer.

    On a server whose sites alone have the model, the records are not tokenised; a warning says why.

    Raises:
        ConfigError: a tracker or the data cannot be used; or the model cannot, and the clients run on this machine.
    """
    config = configuration.load_resolved(run.config, going_on=run.begun)
    check(config)
    stream, unjudged = open_stream(config), list[str]()
    try:
        stream.judged_by(partial(judge_of, config.backbone))
    except ConfigError as error:
        if not (run.path / BELONGS).is_file():
            raise
        unjudged = [f"records were not judged here, each client judges its own: {str(error).splitlines()[0]}"]
    stream.prepare()
    stream.warnings += unjudged
    return config, stream


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point under Flower.

    The run configuration names either ``run-dir``, a run folder to go on with (with ``accept-changed-data=true``
    although data or code are not what they were), or ``config``, a YAML file, with ``overrides``
    (``"seed=1 federation.rounds=2"``). Give absolute paths: Flower runs this in a folder of its own.

    Raises:
        ConfigError: neither is given, or the configuration is wrong.
    """
    settings = {key: str(value) for key, value in context.run_config.items()}
    if settings.get("run-dir"):
        path = Path(settings["run-dir"])
    elif settings.get("config"):
        file = Path(settings["config"])
        config = configuration.load(file, shlex.split(settings.get("overrides", "")))
        path = RunDir.create(Path(config.output), config.name, configuration.dump(config), describe()).path
    else:
        raise ConfigError("nothing to run: give flwr run an absolute path, -c 'config=\"/path/to/run.yaml\"'")
    accepted = settings.get("accept-changed-data", "").lower() == "true"
    run(path, grid, accept_changed_data=accepted, patience=_OVERLAP)
