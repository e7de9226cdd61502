"""The folder of a run: what is written, and how so that a kill never leaves half a file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fcit.errors import ConfigError, RunError

Tensors = dict[str, np.ndarray]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file all or nothing: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """JSON with stable formatting, all or nothing."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def write_tensors(path: Path, tensors: Tensors, durable: bool = True) -> None:
    """A safetensors file, all or nothing. ``durable`` files survive a power cut; scratch files need not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
    if durable:
        _sync(temporary)
    temporary.replace(path)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable JSON file of a run ({error})") from None


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
        self.adapters = path / "adapters"
        self.memory = path / "client-memory"

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
            write_text(run.config, config)
            write_json(run.environment, environment)
        except OSError as error:
            raise ConfigError(f"output: cannot write run folders into {str(output)!r} ({error})") from None
        return run

    @classmethod
    def place(cls, path: Path, config: str, environment: dict[str, Any]) -> RunDir:
        """Make the run folder ``path`` itself, or take it if it is there.

        Raises:
            ConfigError: the folder cannot be written.
        """
        run = cls(path)
        try:
            write_json(run.environment, environment)
            write_text(run.config, config)
        except OSError as error:
            raise ConfigError(f"output: cannot write the run folder {str(path)!r} ({error})") from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run folder.

        Raises:
            ConfigError: there is no run at ``path``.
        """
        run = cls(path)
        if not run.config.is_file():
            raise ConfigError(f"{path}: not a run folder (it has no config.yaml)")
        return run

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
        with self.events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Events in order; a last half line (a kill while writing) is passed over."""
        if self.events.is_file():
            with self.events.open(encoding="utf-8") as file:
                for line in file:
                    if line.endswith("\n"):
                        yield json.loads(line)

    def truncate_events(self, size: int) -> None:
        """Forget events written after the checkpoint that is resumed from."""
        if self.events.is_file() and self.events.stat().st_size > size:
            with self.events.open("r+b") as file:
                file.truncate(size)

    def clear_spill(self) -> None:
        """Remove waiting updates."""
        shutil.rmtree(self.spill, ignore_errors=True)
