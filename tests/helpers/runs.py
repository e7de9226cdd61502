"""Small runs of whole federations: their configuration, what must be equal between two, and what ends one."""

from pathlib import Path
from typing import Any

import yaml

from fcit.data.shipped import SHIPPED

ROOT = Path(__file__).parents[2]
#: The example parts of one's own.
OWN = ROOT / "examples" / "own"
#: Four stages in a few seconds.
SMALL: dict[str, Any] = {
    "name": "small",
    "benchmark": "fcit-mini-short",
    "method": "disco",
    "federation": {"rounds": 2, "clients": 50, "clients_per_round": 2},
    "data": {"max_records": 400},
    "evaluation": {"samples": 8},
    "backbone": {"threads": 1},
}


def bits(run: Path) -> dict[str, bytes]:
    """What must be equal between two runs of the same configuration and seed."""
    files = [run / "matrix.json", *sorted(run.glob("adapters/**/*.safetensors"))]
    files += sorted(run.glob("predictions/*/*"))
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def two_stages(folder: Path) -> Path:
    """The short benchmark's second half, as a benchmark file of one's own."""
    raw = yaml.safe_load((SHIPPED / "fcit-mini-short.yaml").read_text())
    names = ["figureqa", "super-clevr"]
    raw |= {"name": "two", "datasets": {n: raw["datasets"][n] for n in names}, "tasks": [[n] for n in names]}
    raw["partition"]["folder"] = "partitioned_data/Task-related/two"
    del raw["heterogeneous"]
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def rounds(run: Path) -> int:
    """Rounds of a run that are over; the last one's checkpoint may not be written yet."""
    events = run / "events.jsonl"
    return events.read_text().count('"event": "round"') if events.is_file() else 0


class Dies:
    """A watcher that ends the process' work at the event of one of ``kinds`` that leaves none of ``left``."""

    def __init__(self, left: int, *kinds: str) -> None:
        self.left, self.kinds = left, kinds

    def say(self, kind: str, **values: object) -> None:
        """Count an event."""
        if kind in self.kinds:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
