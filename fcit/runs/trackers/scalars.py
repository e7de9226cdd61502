"""What a run shows to trackers of numbers, under the same names in every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.runs.folder import RunDir


class Point(NamedTuple):
    """Numbers of one event.

    Attributes:
        order: ascends from event to event of a run, and is the same when an event is repeated after a resume.
        step: rounds of the run so far, the x-axis of every number.
        scalars: by name; see :class:`Scalars`.
        time: seconds since 1970 when it happened; None: now.
    """

    order: int
    step: int
    scalars: dict[str, float]
    time: float | None = None


class Scalars:
    """A tracker of numbers: it receives every event of the run and passes on what :attr:`Point.scalars` lists.

    =========================== ===========================================================================
    round/loss                  mean over the updates of a round; none with ``privacy.record_dp``
    round/seconds               of a round, on the clock of the server
    round/bytes_up, bytes_down  of a round, from the clients and to them
    score/DATASET               after a stage
    stage/last_so_far           mean score after a stage
    stage/forgetting_so_far     mean over the data sets learnt before of best score so far minus score now
    final/last, avg, mft, ...   the figures of the whole run, as in ``results.json``
    =========================== ===========================================================================

    A tracker is made at the first event after each start of the run. It shows the events of earlier starts
    (``events.jsonl``) once more, so that a subclass only has to pass over, or to overwrite, what it already has.
    """

    #: The package it imports, which is also its name for pip.
    needs: ClassVar[str] = ""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self.run, self.config = RunDir(run_dir), config
        self._rows: dict[int, dict[str, float]] = {}
        self._step = 0
        self.open()
        for event in self.run.read_events():
            self._show(event["event"], event, event["time"])

    def say(self, kind: str, **values: Any) -> None:
        """One event of the run."""
        self._show(kind, values)

    def open(self) -> None:
        """Begin the tracker's own run, or go on with it."""
        raise NotImplementedError

    def write(self, point: Point) -> None:
        """Write the numbers of one event; after a resume some for the second time."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""
        raise NotImplementedError

    def _show(self, kind: str, values: dict[str, Any], time: float | None = None) -> None:
        if kind == "round":
            self._step += 1  # some methods have more rounds after those of a stage
            scalars, rank = _of_round(values), 0
        elif kind == "stage":
            self._step = max(self._step, values["stage"] + 1)  # of a method without rounds
            self._rows[values["stage"]] = values["row"]
            scalars, rank = self._of_stage(values["row"]), 1
        elif kind == "end":
            rank = 2
            scalars = {f"final/{name.lower()}": values[name] for name in AccuracyMatrix([]).summary()}
        else:
            return
        known = {name: float(value) for name, value in scalars.items() if value is not None}
        self.write(Point(3 * self._step + rank, self._step, known, time))

    def _of_stage(self, row: dict[str, float]) -> dict[str, float | None]:
        rows = [self._rows.get(stage, {}) for stage in range(max(self._rows) + 1)]
        matrix = AccuracyMatrix(list(dict.fromkeys(name for seen in rows for name in seen)), rows)
        scores: dict[str, float | None] = {f"score/{name}": score for name, score in row.items()}
        if not row:  # not evaluated
            return scores
        return scores | {"stage/last_so_far": matrix.last, "stage/forgetting_so_far": matrix.forgetting}


def _of_round(values: dict[str, Any]) -> dict[str, float | None]:
    losses = [loss for loss in values["loss"].values() if loss is not None]
    return {
        "round/loss": sum(losses) / len(losses) if losses else None,
        "round/seconds": values["seconds"],
        "round/bytes_up": values["up"],
        "round/bytes_down": values["down"],
    }


def parameters(config: RunConfig) -> dict[str, str]:
    """Every resolved setting as text, by its key as on the command line, e.g. ``federation.rounds``."""
    return dict(_flat(yaml.safe_load(configuration.dump(config)), ""))


def _flat(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "null" if value is None else str(value)
