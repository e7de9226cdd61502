"""What a client keeps of its sessions of secure aggregation: a secret each, and what it has done with it.

A secret is random, made for one session, and never leaves the client: kept on disk, where any process that serves the
client finds it, and removed with the last phase. A step is claimed by making its file, which only one process can.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fcit.errors import Refused, RunError
from fcit.federation.messages import NAME
from fcit.io.files import read_json
from fcit.privacy.secagg import keys

_SECRET = "secret"


class Sessions:
    """The sessions of one client in one run.

    Args:
        folder: the client's own, in its memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sessions"

    def begin(self, session: str, stage: int, round_: int) -> bytes:
        """A new secret; sessions of other rounds are removed.

        Raises:
            Refused: the session has begun before, or its name is not one of this round.
        """
        prefix = f"{stage}-{round_}-"
        if not NAME.fullmatch(session) or not session.startswith(prefix):
            raise Refused(f"session: {session!r} is not the name of one of stage {stage}, round {round_} ({prefix}...)")
        for other in self._folder.iterdir() if self._folder.is_dir() else ():
            if not other.name.startswith(prefix):
                shutil.rmtree(other, ignore_errors=True)
        secret = keys.fresh()
        try:
            (self._folder / session).mkdir(parents=True, mode=0o700)
            self._write(session, _SECRET, secret)
        except FileExistsError:
            raise Refused(f"session {session}: it has begun before") from None
        return secret

    def secret(self, session: str) -> bytes:
        """The secret of a session.

        Raises:
            Refused: there is none (any more).
        """
        try:
            return self._file(session, _SECRET).read_bytes()
        except OSError:
            raise Refused(f"session {session}: it has not begun here, or is over") from None

    def last(self, session: str) -> bytes:
        """The secret, for the last time: it is removed, and whoever asks next is refused.

        Raises:
            Refused: it was removed before.
        """
        secret = self.secret(session)
        try:
            self._file(session, _SECRET).unlink()
        except FileNotFoundError:
            raise Refused(f"session {session}: it is over") from None
        return secret

    def claim(self, session: str, step: str, value: dict[str, Any]) -> None:
        """Note that a step is taken, and with what, before it is.

        Raises:
            Refused: it was taken before.
        """
        try:
            self._write(session, step, json.dumps(value).encode())
        except FileExistsError:
            raise Refused(f"session {session}: {step!r} was done before, a second time is refused") from None
        except FileNotFoundError:
            raise Refused(f"session {session}: it has not begun here") from None

    def claimed(self, session: str, step: str) -> dict[str, Any]:
        """What a step was taken with.

        Raises:
            Refused: it was not taken.
        """
        try:
            value: dict[str, Any] = read_json(self._file(session, step))
        except RunError:
            raise Refused(f"session {session}: {step!r} was not done here") from None
        return value

    def _file(self, session: str, name: str) -> Path:
        if not NAME.fullmatch(session):
            raise Refused(f"session: {session!r} cannot name a folder")
        return self._folder / session / name

    def _write(self, session: str, name: str, content: bytes) -> None:
        handle = os.open(self._file(session, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
