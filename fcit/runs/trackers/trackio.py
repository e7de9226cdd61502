"""Trackio, the tracker of Hugging Face that needs no account."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from fcit.errors import RunError
from fcit.runs.trackers.scalars import Point, Scalars, parameters

#: Variables by which Trackio would send a run away, where what it has cannot be looked up.
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio(Scalars):
    """A run of Trackio in its data base on this machine (``TRACKIO_DIR``); ``trackio show --project fcit`` shows it.

    ``trackio sync`` sends it to a Space. The project is ``fcit`` where ``TRACKIO_PROJECT`` is not set. When a run is
    resumed its numbers are written anew from ``events.jsonl``, so that no step occurs twice.

    Raises:
        RunError: the environment says that runs are sent away while they are made.
    """

    summary = "Trackio's local data base"
    needs = "trackio"

    def open(self) -> None:
        sent = [name for name in _ELSEWHERE if os.environ.get(name)]
        if sent:
            raise RunError(f"{sent[0]} is set, and runs are kept on this machine; unset it and `trackio sync` later")
        with contextlib.redirect_stdout(io.StringIO()):  # several lines about dashboards
            import trackio

            self._trackio: Any = trackio
            project = os.environ.get("TRACKIO_PROJECT", "fcit")
            name = "-".join(filter(None, (self.run.path.name, self.run.id[:8])))
            with contextlib.suppress(ValueError):  # there is no such project yet
                for old in trackio.Api().runs(project):
                    if old.name == name:
                        old.delete()
            self._run: Any = trackio.init(
                project, name, config=parameters(self.config), embed=False, auto_log_cpu=False, auto_log_gpu=False
            )

    def write(self, point: Point) -> None:
        self._run.log(dict(point.scalars), step=point.step)

    def attach(self, file: Path) -> None:
        """Log the report as an artifact of type ``report``."""
        self._run.log_artifact(file, name=f"report-{self._run.name}", type="report")

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()
