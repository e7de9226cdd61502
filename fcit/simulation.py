"""Running a configuration on this machine or a Ray cluster; behind ``fcit run`` and the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import yaml

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig, async_checks
from fcit.data.stream import Stream, open_stream
from fcit.errors import ConfigError
from fcit.io import collector
from fcit.runs.create import create
from fcit.runs.environment import own_packages_first, quiet_libraries
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from fcit.runs.trackers import Trackers, Watcher


def execute(
    path: Path,
    watcher: Watcher | None = None,
    accept_changed_data: bool = False,
    prepared: tuple[RunConfig, Stream] | None = None,
    alone: bool = False,
) -> Run:
    """Run a run folder from where it stands to the end, and write its report.

    Args:
        path: the run folder.
        watcher: as for :func:`simulate`; a context manager is entered once the engine has its processes, which are not
            forked while a thread of a progress bar runs.
        accept_changed_data: go on where data or code are not what they were when the run began; it is recorded.
        prepared: configuration and prepared stream of a folder that was made just now; None: both are read again.
        alone: this process is there for the run, so that what it has imported is left out of its collections.

    Raises:
        ConfigError: they are not, and that is not accepted.
        RunError: the run cannot go on. StopRequested: asked to stop. Both leave a checkpoint.
    """
    own_packages_first()
    with collector.paused():
        from fcit.report.page import write_page
        from server.app import run as serve
    folder = RunDir.open(path)
    config = prepared[0] if prepared else configuration.load_resolved(folder.config, going_on=folder.begun)
    with collector.paused():
        engine = registry.resolve("engine", config.federation.engine).of(config)
    app = _client_app() if engine.here else None
    if alone:
        collector.settle()
    with (
        closing(engine(app, config.federation.clients, config, folder.memory)) as grid,
        watcher if isinstance(watcher, AbstractContextManager) else nullcontext(),
    ):
        serve(path, grid, watcher, accept_changed_data, prepared)
    run = Run(path, prepared[0] if prepared else None)
    write_page([run], path / "report.html")
    Trackers(folder, config, watcher).attach(path / "report.html")
    return run


def _client_app() -> Any:
    with collector.paused():
        from clients.app import app  # torch, transformers and peft: not where client work runs in other processes
    return app


def simulate(config: str | Path | Mapping[str, Any], watcher: Watcher | None = None, **overrides: Any) -> Run:
    """Run a configuration and return its results.

    Args:
        config: a YAML file, or its contents as a mapping.
        watcher: ``watcher.say(kind, **values)`` is told every event, see :mod:`fcit.runs.trackers`. What it raises
            switches it off; only :class:`fcit.errors.StopRequested` stops the run, resumably.
        overrides: settings to change; a dot is written as two underscores, ``training__lr=0.002``.

    Example:
        >>> run = simulate("configs/demo-disco.yaml", seed=1, federation__rounds=2)
        >>> run.matrix.last

    Raises:
        ConfigError: with every mistake found. DataError, RunError: as for ``fcit run``.
    """
    quiet_libraries()
    dumped = {key: yaml.safe_dump(value, default_flow_style=True) for key, value in overrides.items()}
    changes = [f"{key.replace('__', '.')}={text}" for key, text in dumped.items()]
    if isinstance(config, Mapping):
        loaded = configuration.resolve(dict(config), Path.cwd(), "config", changes)
    else:
        loaded = configuration.load(config, changes)
    if problem := async_checks.simulated(loaded):
        raise ConfigError(problem)
    stream = open_stream(loaded)
    return execute(create(loaded, stream).path, watcher, prepared=(loaded, stream))
