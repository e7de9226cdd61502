"""Trackers, which receive the events of a run: TensorBoard, MLflow, ..., or a class of the user's own.

A tracker is a class with ``__init__(run_dir: Path, config: RunConfig)``, ``say(kind, **values)`` and
``close()``; one with ``attach(file: Path)`` is made once more when the run is over, and given the report.
:class:`fcit.runs.trackers.scalars.Scalars` makes numbers of events, under the same names for all trackers. It receives
the events that ``events.jsonl`` holds, and one for each client in between:

    start     stages, rounds, done (stages and rounds finished before a resume)
    client    client, loss (None with privacy.record_dp, as in a round)
    measured  stage, round, clients, client_seconds, seconds, up, down: before the rounds of a stage, for some methods
    round     stage, round (from 0), clients, loss ("client/shard" -> mean), seconds, up, down (bytes), ...
    scored    stage, dataset, score, mix, seconds
    verified  asked, compared, differing (numbers of stretches of questions that two clients answered)
    stage     stage, row (dataset -> score)
    end       Last, Avg, MFT, BWT, forgetting

``dropped`` (clients at work at the end of a stage that did not wait for them), of an asynchronous deployment also
``ordered`` and ``arrived`` (client, order: its stage and number in it, from 0; the order of the latter makes the bits),
and those of failures: ``rejected``, ``missing``, ``absent``, ``retry``, ``describe-failed``, ``left-out``,
``evaluate-failed``, ``openings``, ``memory-lost``, ``refused``, ``discarded`` (an answer after its time), ``lost``
(clients at work when the server ended), ``tracker-failed``, of repairs: ``joined``, ``reused``,
``checkpoint-damaged``, ``spill-damaged``, and ``data-changed``. After a resume the
round or evaluation that was interrupted is reported again.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fcit import registry
from fcit.config import RunConfig
from fcit.errors import ConfigError, StopRequested
from fcit.runs.folder import RunDir

WATCHER = "watcher"


class Watcher(Protocol):
    """Receives the events of a run (progress bars, plain log)."""

    def say(self, kind: str, **values: Any) -> None:
        """One event, as in ``events.jsonl``."""


def names(config: RunConfig) -> list[str]:
    """The trackers of a run, each once."""
    return list(dict.fromkeys([*(["tensorboard"] if config.tensorboard else []), *config.trackers]))


def _problem(name: str) -> str | None:
    """Why a tracker cannot be used, or None."""
    problem = registry.problem("tracker", name)
    if problem is not None:
        return f"trackers: {problem.removeprefix('tracker: ')}"
    kind = registry.resolve("tracker", name)
    lacking = [hook for hook in ("say", "close") if not callable(getattr(kind, hook, None))]
    if lacking:
        return f"trackers: {name} has no {lacking[0]}(); a tracker is a class (run_dir, config) with say and close"
    package = getattr(kind, "needs", "")
    module = importlib.util.find_spec(package) if package else None
    if package and (module is None or module.origin is None):
        return f"{name}: the package {package!r} is not installed; run `pip install {package}`"
    return None


def check(config: RunConfig) -> None:
    """Refuse trackers that cannot be used, before anything is started.

    Raises:
        ConfigError: a tracker does not exist or is not one, or its package is missing.
    """
    problems = [problem for name in names(config) if (problem := _problem(name)) is not None]
    if problems:
        raise ConfigError(problems)


class Trackers:
    """The watcher of a run and its trackers, which receive each event one after the other.

    They receive copies. One that raises is switched off with a ``tracker-failed`` event and the run
    goes on; only the watcher may end it, by raising :class:`fcit.errors.StopRequested`. Trackers are made
    at the first event, when a resumed run's ``events.jsonl`` has been cut back to its checkpoint.
    """

    def __init__(self, run: RunDir, config: RunConfig, watcher: Watcher | None = None) -> None:
        self.run, self.config = run, config
        self._waiting = names(config)
        self._active: dict[str, Any] = {} if watcher is None else {WATCHER: watcher}

    def say(self, kind: str, **values: Any) -> None:
        """Pass one event on."""
        waiting, self._waiting = self._waiting, []
        for name in waiting:
            self._try(name, partial(self._make, name))
        for name, part in list(self._active.items()):
            if name in self._active:
                self._try(name, partial(part.say, kind, **copy.deepcopy(values)))

    def close(self) -> None:
        """Let every tracker finish what it writes."""
        for name, part in list(self._active.items()):
            if name != WATCHER:
                self._try(name, part.close)

    def attach(self, file: Path) -> None:
        """Give a finished run's report to the trackers that keep files, except to those that have been switched off."""
        off = {event["tracker"] for event in self.run.read_events() if event["event"] == "tracker-failed"}
        self._waiting = []
        for name in names(self.config):
            if registry.label(name) not in off and hasattr(registry.resolve("tracker", name), "attach"):
                self._try(name, partial(self._attach, name, file))

    def _attach(self, name: str, file: Path) -> None:
        self._make(name)
        self._active[name].attach(file)
        self._active.pop(name).close()

    def _make(self, name: str) -> None:
        self._active[name] = registry.resolve("tracker", name)(self.run.path, self.config)

    def _try(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            if name == WATCHER and isinstance(error, StopRequested):
                raise
            self._active.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            self.run.event("tracker-failed", tracker=registry.label(name), reason=reason)
            self.say("tracker-failed", tracker=registry.label(name), reason=reason)
