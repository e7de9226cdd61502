"""The folder of a run: the paths in it, and its events."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcit.errors import ConfigError, DiskFull, RunError
from fcit.io.files import read_json, write_json, write_text, writing

NEAR = 5  # run folders that are named where a path is none

#: File of a run folder that names the deployment whose sites it is run on.
BELONGS = "deployment.txt"


class RunDir:
    """Paths and writers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.events = path / "events.jsonl"
        self.matrix = path / "matrix.json"
        self.results = path / "results.json"
        self.predictions = path / "predictions"
        self.state = path / "state"
        self.spill = path / "spill"
        self.late = path / "late"
        self.adapters = path / "adapters"
        self.memory = path / "client-memory"
        self.start = path / "start"
        self.noise_key = path / "noise.key"  # of differential privacy, while the run goes on

    @classmethod
    def create(cls, output: Path, name: str, config: str, environment: dict[str, Any]) -> RunDir:
        """Make ``output/name-<n>`` with the first free number.

        Raises:
            ConfigError: the folder cannot be made.
        """
        try:
            output.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = output / f"{name}-{number}"
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
                number += 1
            run = cls(path)
            run._write(config, environment)
        except (OSError, DiskFull) as error:
            raise ConfigError(f"output: cannot write run folders into {str(output)!r} ({error})") from None
        return run

    @classmethod
    def place(cls, path: Path, config: str, environment: dict[str, Any]) -> RunDir:
        """Make the run folder ``path`` itself, or use it if it exists.

        Raises:
            ConfigError: the folder cannot be written.
        """
        run = cls(path)
        try:
            run._write(config, environment)
        except (OSError, DiskFull) as error:
            raise ConfigError(f"output: cannot write the run folder {str(path)!r} ({error})") from None
        return run

    def _write(self, config: str, environment: dict[str, Any]) -> None:
        """Write the files that make a folder a run; the configuration comes last: a folder that has it is whole."""
        write_json(self.environment, {**environment, "id": uuid.uuid4().hex})
        write_text(self.config, config)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run folder.

        Raises:
            ConfigError: ``path`` is not a run folder.
        """
        run = cls(path)
        if not run.config.is_file():
            folder = path if path.is_dir() else path.parent
            near = sorted(str(file.parent) for file in folder.glob("*/config.yaml"))
            hint = f"there are: {', '.join(near[:NEAR])}" if near else "`fcit run CONFIG` makes one"
            raise ConfigError(f"{path}: not a run folder (it has no config.yaml); {hint}")
        return run

    @property
    def id(self) -> str:
        """Identifies this run, wherever its folder is moved; empty for runs of older versions."""
        return str(read_json(self.environment).get("id", ""))

    @property
    def begun(self) -> bool:
        """Whether the run has a checkpoint to go on from."""
        return any(self.state.glob("*/state.json"))

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``.

        Raises:
            DiskFull: the disk is full.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
        with writing(self.events), self.events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Events in order; a last half line (a kill while writing) is passed over.

        Raises:
            RunError: a line is damaged.
        """
        if not self.events.is_file():
            return
        with self.events.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    event = json.loads(line.decode("utf-8"))
                    problem = None if isinstance(event, dict) and "event" in event else "not an event"
                except (ValueError, RecursionError) as error:
                    problem = str(error)
                if problem:
                    raise RunError(f"{self.events}, line {number}: damaged ({problem}); remove this line")
                yield event

    def truncate_events(self, size: int) -> None:
        """Forget events written after the checkpoint that is resumed from."""
        if self.events.is_file() and self.events.stat().st_size > size:
            with self.events.open("r+b") as file:
                file.truncate(size)

    def clear_spill(self) -> None:
        """Remove waiting updates."""
        for folder in (self.spill, self.late):
            shutil.rmtree(folder, ignore_errors=True)
