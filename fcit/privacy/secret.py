"""Secrets in files that their owner alone can read."""

from __future__ import annotations

import os
from pathlib import Path

from fcit.errors import RunError
from fcit.io.files import writing
from fcit.privacy.noise import SECRET, fresh


def kept(file: Path) -> bytes:
    """The secret in a file; a new one, from the operating system, where there is no file.

    Raises:
        RunError: the file does not hold a secret. DiskFull: there is no room for one.
    """
    if not file.is_file():
        _write(file, fresh())
    secret = file.read_bytes()
    if len(secret) != SECRET:
        raise RunError(f"{file} has {len(secret)} bytes, expected {SECRET}; put the file back, or start the run anew")
    return secret


def _write(file: Path, secret: bytes) -> None:
    unfinished = file.with_suffix(".tmp")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as opened:
            opened.write(secret)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
