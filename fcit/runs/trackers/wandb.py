"""Weights & Biases."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fcit.runs.trackers.scalars import Point, Scalars, parameters


class WandB(Scalars):
    """A run of Weights & Biases, kept in ``<run>/wandb`` unless ``WANDB_MODE=online`` sends it away.

    ``wandb sync <run>/wandb/offline-run-*`` sends it later. Project, entity and server are those of wandb's own
    variables; the project is ``fcit`` where ``WANDB_PROJECT`` is not set. Online, a resumed run goes on where W&B has
    it; offline its folder is written anew from ``events.jsonl``, so that one folder holds the whole run.
    """

    summary = "Weights & Biases, offline in the run folder unless WANDB_MODE=online"
    needs = "wandb"

    def open(self) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        name = self.run.id or self.run.path.name
        if mode == "offline":
            for old in (self.run.path / "wandb").glob(f"offline-run-*-{name}"):
                shutil.rmtree(old)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fcit"),
            id=name,
            name=self.run.path.name,
            dir=self.run.path,
            config=parameters(self.config),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        self._run.define_metric("rounds", hidden=True)
        self._run.define_metric("*", step_metric="rounds")

    def write(self, point: Point) -> None:
        if point.order >= self._run.step:  # W&B has the others
            self._run.log({**point.scalars, "rounds": point.step}, step=point.order)

    def attach(self, file: Path) -> None:
        """Log the report as an artifact of type ``report``."""
        self._run.log_artifact(str(file), name=f"report-{self._run.id}", type="report")

    def close(self) -> None:
        self._run.finish()
