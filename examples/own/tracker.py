"""A tracker of one's own: ``fcit run CONFIG 'trackers=[./examples/own/tracker.py:Rounds]'``.

Any other service is told in the same way: connect in ``__init__``, send in ``say``, take leave in ``close``.
"""

import csv
from pathlib import Path
from typing import Any

from fcit.config import RunConfig


class Rounds:
    """One line a round in ``<run>/rounds.csv``."""

    summary = "rounds.csv in the run folder"

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self.file, self.rounds = run_dir / "rounds.csv", config.federation.rounds

    def say(self, kind: str, **values: Any) -> None:
        if kind == "start":
            self._begin(*values["done"])
        elif kind == "round":
            losses = values["loss"].values()
            mean = sum(losses) / max(len(losses), 1)
            with self.file.open("a", newline="") as file:
                csv.writer(file).writerow([values["stage"] + 1, values["round"] + 1, f"{mean:.4f}", values["up"]])

    def _begin(self, stages: int, rounds: int) -> None:
        """A resumed run tells the round that was cut again: keep what was finished."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else ["stage,round,loss,bytes"]
        kept = lines[: 1 + stages * self.rounds + rounds]
        self.file.write_text("".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        pass
