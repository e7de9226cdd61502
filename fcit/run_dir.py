"""The folder of a run: what is written, and how so that a kill never leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fcit import strict
from fcit.errors import ConfigError, DiskFull, RunError

Tensors = dict[str, np.ndarray]

#: File of a run folder that names the deployment whose sites it is run on.
BELONGS = "deployment.txt"


#: What the system says where there is no room: disk full, quota used up, file size limit.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number(error: OSError | SafetensorError) -> int | None:
    """The system's error number; safetensors has it in its text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around everything that writes ``path`` (a file or a folder).

    Raises:
        DiskFull: there is no room for it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number not in _NO_ROOM:
            raise
        there = next(p for p in (path, *path.parents) if p.is_dir())
        free = shutil.disk_usage(there).free / 1e6
        run = next((p for p in path.parents if (p / "config.yaml").is_file()), None)
        then = f", then `fcit resume {run}` goes on from the last checkpoint" if run is not None else ""
        raise DiskFull(
            f"{path}: cannot be written: {os.strerror(number)} ({free:.1f} MB free); make room{then}"
        ) from None


@contextlib.contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[Path]:
    """A temporary file to write; at the end it takes the place of ``path``, or is removed if that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a file all or nothing: temporary name, fsync, rename, fsync of the folder.

    Raises:
        DiskFull: there is no room; what was there before is untouched.
    """
    with _replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """JSON with stable formatting, all or nothing. Raises as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n", durable)


def write_tensors(path: Path, tensors: Tensors, durable: bool = True) -> None:
    """A safetensors file, all or nothing. ``durable`` files survive a power cut; scratch files need not.

    Raises:
        DiskFull: there is no room; what was there before is untouched.
    """
    with _replacing(path, durable) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        # Shapes and number formats that numpy does not have reach us as whatever it raises.
        raise RunError(f"{path}: not a readable safetensors file ({error})") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        problem = strict.depth_problem(value)
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise RunError(f"{path}: not a readable JSON file of a run ({problem})")
    return value


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
            run._found(config, environment)
        except (OSError, DiskFull) as error:
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
            run._found(config, environment)
        except (OSError, DiskFull) as error:
            raise ConfigError(f"output: cannot write the run folder {str(path)!r} ({error})") from None
        return run

    def _found(self, config: str, environment: dict[str, Any]) -> None:
        """Write what makes a folder a run; the configuration goes last and says that it is whole."""
        write_json(self.environment, {**environment, "id": uuid.uuid4().hex})
        write_text(self.config, config)

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

    @property
    def id(self) -> str:
        """What tells this run from all others, wherever its folder is; empty for runs of older versions."""
        return str(read_json(self.environment).get("id", ""))

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(self.state.glob("*/state.json"))

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``.

        Raises:
            DiskFull: there is no room.
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
        shutil.rmtree(self.spill, ignore_errors=True)
