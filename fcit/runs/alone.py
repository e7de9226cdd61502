"""A run folder is one process's at a time: of two at work on it each would take the other's files for its own."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcit.errors import ConfigError
from fcit.io.files import writing
from fcit.runs.folder import RunDir

#: Of a run folder, while a process is at work on it; what a kill leaves behind is nobody's.
LOCK = ".lock"
_NAP = 0.2  # seconds between two tries
_TAKEN = errno.EACCES, errno.EAGAIN


@contextmanager
def alone(run: RunDir, patience: float = 0.0) -> Iterator[None]:
    """Keep the run folder to this process.

    By a lock of the system's (POSIX), which ends with the process, however that ends, and which processes that it forks
    do not have. Where the file system has no locks, nobody is kept out.

    Args:
        patience: seconds in which another process that is at work there may end.

    Raises:
        ConfigError: it does not.
        DiskFull: there is no room for the file.
    """
    file, until = run.path / LOCK, time.monotonic() + patience
    while (handle := _taken(file)) is None:
        if time.monotonic() >= until:
            raise ConfigError(
                f"{run.path}: {_holder(file)} is at work on this run, and two would spoil it; wait until that one has "
                "ended, or end it"
            )
        time.sleep(_NAP)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _taken(file: Path) -> int | None:
    """The file, opened and locked; None if another process holds it."""
    with writing(file):
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            return handle  # no locks here
        os.close(handle)
        return None
    if not (file.exists() and os.path.samestat(os.fstat(handle), file.stat())):  # its last holder has removed it
        os.close(handle)
        return _taken(file)
    with writing(file):
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} of {socket.gethostname()}".encode())
    return handle


def _holder(file: Path) -> str:
    """Who is at work, as far as its file says."""
    try:
        return file.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
