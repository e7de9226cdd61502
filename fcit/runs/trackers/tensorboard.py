"""TensorBoard event files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.runs.folder import RunDir


class TensorBoard:
    """Losses, traffic, seconds and scores in ``<run>/tensorboard``; ``tensorboard --logdir runs`` shows them.

    The step is the number of rounds so far, also where a stage is scored. When a run is resumed the
    files are written anew from ``events.jsonl``, so that no step occurs twice.
    """

    summary = "TensorBoard event files in the run folder (as tensorboard=true)"
    needs = "tensorboard"

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._step = 0
        folder = run_dir / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that has read the old files drops everything from step 0 on.
        self._writer: Any = SummaryWriter(str(folder), purge_step=0)
        text = configuration.dump(config)
        self._writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        for event in RunDir(run_dir).read_events():
            self._show(event["event"], event, event["time"])

    def say(self, kind: str, **values: Any) -> None:
        """Write one event."""
        self._show(kind, values)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _show(self, kind: str, values: dict[str, Any], time: float | None = None) -> None:
        """Scalars of a finished round or stage; ``time`` is when it happened, now if None."""
        scalars: dict[str, float | None] = {}
        if kind == "round":
            self._step += 1
            losses = [loss for loss in values["loss"].values() if loss is not None]
            scalars = {
                "round/loss": sum(losses) / len(losses) if losses else None,
                "round/seconds": values["seconds"],
                "round/bytes_up": values["up"],
                "round/bytes_down": values["down"],
            }
        elif kind == "stage":
            self._step = max(self._step, values["stage"] + 1)  # of a method without rounds
            scalars = {f"score/{name}": score for name, score in values["row"].items()}
            scalars["stage/last_so_far"] = AccuracyMatrix(list(values["row"]), [values["row"]]).last
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, self._step, walltime=time)
