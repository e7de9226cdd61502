"""TensorBoard event files of a run."""

from __future__ import annotations

from typing import Any

from fcit import config as configuration
from fcit.runs.trackers.scalars import Point, Scalars


class TensorBoard(Scalars):
    """Losses, traffic, seconds and scores in ``<run>/tensorboard``; ``tensorboard --logdir runs`` shows them.

    When a run is resumed the files are written anew from ``events.jsonl``, so that no step occurs twice.
    """

    summary = "TensorBoard event files in the run folder (as tensorboard=true)"
    needs = "tensorboard"

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run.path / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that has read the old files drops everything from step 0 on.
        self._writer: Any = SummaryWriter(str(folder), purge_step=0)
        text = configuration.dump(self.config)
        self._writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def say(self, kind: str, **values: Any) -> None:
        super().say(kind, **values)
        self._writer.flush()

    def write(self, point: Point) -> None:
        for tag, value in point.scalars.items():
            self._writer.add_scalar(tag, value, point.step, walltime=point.time)

    def close(self) -> None:
        self._writer.close()
