"""Files written all or nothing, so that a kill never leaves half of one, and read back with errors that name them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fcit.errors import DiskFull, RunError
from fcit.io import bounded
from fcit.io.trees import Tensors

#: Error numbers of the system for a full disk: no space, quota used up, file size limit.
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
    match = re.search(r"os error (\d+)", str(error))
    return int(match.group(1)) if match else None


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
        existing = next(p for p in (path, *path.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free / 1e6
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
        DiskFull: there is no room; the file is left as it was.
    """
    write_bytes(path, text.encode("utf-8"), durable)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file all or nothing. Raises as :func:`write_text`."""
    with _replacing(path, durable) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """JSON with stable formatting, all or nothing. Raises as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n", durable)


def write_tensors(path: Path, tensors: Tensors, durable: bool = True) -> None:
    """A safetensors file, all or nothing. ``durable`` files survive a power cut; scratch files need not.

    Raises:
        DiskFull: there is no room; the file is left as it was.
    """
    with _replacing(path, durable) as temporary:
        save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, temporary)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file.

    Raises:
        RunError: missing or damaged.
    """
    with _readable(path):
        return load_file(path)


def map_tensors(path: Path) -> Tensors:
    """Read a safetensors file that is aggregated and then removed: as private pages of the file itself, without a copy.

    torch's reader does that; a process that has not loaded torch makes the copy rather than wait for it.

    Raises:
        RunError: missing or damaged.
    """
    if "torch" not in sys.modules:
        return read_tensors(path)
    from safetensors.torch import load_file as mapped

    with _readable(path):
        return {name: tensor.numpy() for name, tensor in mapped(path).items()}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
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
        problem = bounded.depth_problem(value)
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise RunError(f"{path}: not a readable JSON file of a run ({problem})")
    return value
