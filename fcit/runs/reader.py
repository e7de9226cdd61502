"""Reads run folders, of finished and unfinished runs. Nothing here loads a model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.errors import DataError, RunError
from fcit.evaluation import predictions
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.evaluation.predictions import Prediction
from fcit.io.files import read_json
from fcit.runs.folder import RunDir
from fcit.runs.recorded import data_of

__all__ = ["Prediction", "Run", "load_run"]


class Run:
    """The configuration, events and results of a run.

    Args:
        path: the run folder.
        config: its resolved configuration, where that is at hand; None: read from the folder when needed.

    Raises:
        ConfigError: ``path`` is not a run folder.
    """

    def __init__(self, path: str | Path, config: RunConfig | None = None) -> None:
        self.folder, self._config = RunDir.open(Path(path)), config

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def name(self) -> str:
        """Name of the run folder, e.g. ``task-disco-1``."""
        return self.path.name

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self._config or configuration.load_resolved(self.folder.config)

    @property
    def method(self) -> str:
        """The method as tables call it; a dagger marks our own definitions, which no paper gives."""
        if self.finished:
            return str(self.results["method"]) + (" †" if self.results.get("dagger") else "")
        return registry.label(str(self.config.method["name"]))

    @property
    def family(self) -> str:
        """The method's family, e.g. ``routing``; empty if it has none or, of an older run, is the user's own."""
        if self.finished and "family" in self.results:
            return str(self.results["family"])
        place = registry.METHODS.get(str(self.config.method["name"]))
        return registry.described(place).family if place else ""

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.folder.results.is_file()

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix, with the stages evaluated so far.

        Raises:
            RunError: no stage has been evaluated yet.
        """
        file = self.folder.matrix
        matrix = AccuracyMatrix.from_json(read_json(file)) if file.is_file() else AccuracyMatrix([])
        if not matrix.evaluated:
            raise RunError(f"{self.path}: no stage has been evaluated yet; `fcit resume {self.path}` goes on")
        return matrix

    @cached_property
    def results(self) -> dict[str, Any]:
        """``results.json``: figures of merit, traffic, seconds.

        Raises:
            RunError: the run has not finished.
        """
        if not self.finished:
            raise RunError(f"{self.path}: the run has not finished; `fcit resume {self.path}` goes on")
        return dict(read_json(self.folder.results))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and machine."""
        return dict(read_json(self.folder.environment))

    @cached_property
    def data(self) -> dict[str, Any]:
        """Fingerprints of data and own code (:mod:`fcit.data.fingerprints.fingerprint`); empty for older runs."""
        return dict(data_of(self.folder).get("data") or {})

    @cached_property
    def data_changes(self) -> list[dict[str, Any]]:
        """Changes accepted with ``--accept-changed-data``: ``time``, ``changes`` and, as sentences, ``said``."""
        return list(data_of(self.folder).get("data_changes") or [])

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Everything that happened, in order (``events.jsonl``)."""
        return list(self.folder.read_events())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, e.g. ``round``, ``scored``, ``rejected``."""
        return [event for event in self.events if event["event"] == kind]

    @cached_property
    def constants(self) -> dict[str, float]:
        """Score of the best constant answer by data set; empty for unfinished runs and older run folders."""
        constants = self.results.get("constants", {}) if self.finished else {}
        return {name: float(constant["score"]) for name, constant in constants.items()}

    @property
    def subspaces(self) -> list[str]:
        """Names of the subspaces; the order of every mix."""
        return [str(name) for name in self.results.get("subspace_names", [])]

    def predictions(self, dataset: str, stage: int | None = None) -> list[Prediction]:
        """Answers to a dataset after a stage (1-based; default: the last one that was evaluated).

        Where every client answered with factors of its own, those of one client follow those of another.

        Raises:
            RunError: no such answers, or a damaged file.
        """
        stages = [
            int(folder.name.removeprefix("stage-"))
            for folder in self.folder.predictions.glob("stage-*")
            if answer_files(folder, dataset) and stage in (None, int(folder.name.removeprefix("stage-")))
        ]
        if not stages:
            after = f" after stage {stage}" if stage is not None else ""
            answered = sorted({file.stem for file in self.folder.predictions.glob("stage-*/*.jsonl")})
            raise RunError(f"{self.path}: no predictions for {dataset!r}{after} (there are: {', '.join(answered)})")
        files = answer_files(self.folder.predictions / f"stage-{max(stages)}", dataset)
        try:
            return [prediction for file in files for prediction in predictions.read(file)]
        except DataError as error:
            raise RunError(f"damaged predictions: {error}") from None


def answer_files(folder: Path, dataset: str) -> list[Path]:
    """The files of a stage with answers to a dataset: one, or one of each client that answered by itself."""
    whole = folder / f"{dataset}.jsonl"
    if whole.is_file():
        return [whole]
    head = f"{dataset}.client-"
    numbers = {file.stem.removeprefix(head): file for file in folder.glob("*.jsonl") if file.stem.startswith(head)}
    return [numbers[number] for number in sorted(filter(str.isdecimal, numbers), key=int)]


def load_run(path: str | Path) -> Run:
    """Open a run folder.

    Example:
        >>> run = load_run("runs/task-disco-1")
        >>> run.matrix.last, run.results["forgetting"]

    Raises:
        ConfigError: ``path`` is not a run folder.
    """
    return Run(path)
