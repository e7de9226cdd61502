"""MLflow."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from fcit.runs.trackers.scalars import Point, Scalars, parameters

_AT_ONCE = 100  # parameters that one request to a tracking server may hold
_MARK = "fcit.run"  # the tag by which a run is found again


class MLflow(Scalars):
    """A run of MLflow in ``mlflow.db`` beside the run folders, or where ``MLFLOW_TRACKING_URI`` says.

    ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`` shows them. The experiment is ``fcit`` where
    ``MLFLOW_EXPERIMENT_NAME`` is not set. A resumed run goes on in the same run of MLflow, where no step of a metric
    is written twice.
    """

    summary = "MLflow, in mlflow.db beside the run folders unless MLFLOW_TRACKING_URI says where"
    needs = "mlflow"

    def open(self) -> None:
        from mlflow import MlflowClient

        # Which tables a new data base gets would stand between the lines of the run.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        folder = self.run.path.parent.resolve()
        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}"))
        experiment, mark = self._experiment(folder), self.run.id or self.run.path.name
        found = self._client.search_runs([experiment], f"tags.`{_MARK}` = '{mark}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
        else:
            self._id = self._client.create_run(experiment, tags={_MARK: mark}, run_name=self.run.path.name).info.run_id
            self._describe()
        self._written: dict[str, int] = {}  # the last step of each metric

    def _experiment(self, folder: Path) -> str:
        """The experiment's id; files of a local store lie beside its data base, and not in the current folder."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fcit")
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        local = "MLFLOW_TRACKING_URI" not in os.environ
        return str(self._client.create_experiment(name, (folder / "mlartifacts").as_uri() if local else None))

    def _describe(self) -> None:
        from mlflow.entities import Param

        described = [Param(key, value) for key, value in parameters(self.config).items()]
        for first in range(0, len(described), _AT_ONCE):
            self._client.log_batch(self._id, params=described[first : first + _AT_ONCE])

    def write(self, point: Point) -> None:
        from mlflow.entities import Metric

        when = round(1000 * (point.time or time.time()))
        fresh = {name: value for name, value in point.scalars.items() if point.step > self._last(name)}
        self._client.log_batch(self._id, [Metric(name, value, when, point.step) for name, value in fresh.items()])
        self._written |= dict.fromkeys(fresh, point.step)

    def _last(self, name: str) -> int:
        """The last step at which MLflow has a metric; -1 if at none."""
        if name not in self._written:
            steps = [metric.step for metric in self._client.get_metric_history(self._id, name)]
            self._written[name] = max(steps, default=-1)
        return self._written[name]

    def attach(self, file: Path) -> None:
        """Keep the report among the artifacts of the run."""
        self._client.log_artifact(self._id, str(file))

    def close(self) -> None:
        finished = self.run.results.is_file()
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
