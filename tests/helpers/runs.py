"""Small runs of whole federations: their configuration, what must be equal between two, and what ends one."""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: The example parts of one's own.
OWN = ROOT / "examples" / "own"
#: Of small runs; a session adds the paths of the built-in model with fewer layers.
BACKBONE: dict[str, Any] = {"threads": 1}
#: Two stages in a second or two.
SMALL: dict[str, Any] = {
    "name": "small",
    "benchmark": str(Path(__file__).with_name("two.yaml")),
    "method": "disco",
    "seed": 1,  # with it the first rounds call clients whose few records are like each other's
    "federation": {"rounds": 2, "clients": 50, "clients_per_round": 2},
    "data": {"max_records": 400},
    "evaluation": {"samples": 8},
    "backbone": BACKBONE,
}


def bits(run: Path) -> dict[str, bytes]:
    """What must be equal between two runs of the same configuration and seed."""
    files = [run / "matrix.json", *sorted(run.glob("adapters/**/*.safetensors"))]
    files += sorted(run.glob("predictions/*/*"))
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


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


class Copies:
    """A watcher that copies the run folder at the event of one of ``kinds`` that leaves none of ``left``.

    The copy is what a process leaves behind that is killed there, so that one run gives both what a resumed one must
    equal and what is resumed.
    """

    def __init__(self, run: Path, copy: Path, left: int, *kinds: str) -> None:
        self.run, self.copy, self.left, self.kinds = run, copy, left, kinds

    def say(self, kind: str, **values: object) -> None:
        """Count an event."""
        if kind in self.kinds:
            self.left -= 1
            if self.left == 0:
                shutil.copytree(self.run, self.copy)
