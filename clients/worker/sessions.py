"""What a client keeps of its sessions of secure aggregation: a secret each, and what it has done with it.

A secret is random, made for one session, and never leaves the client: kept on disk, where any process that serves the
client finds it, and removed with the last phase, with the next session, or with the next order that is of none. A step
is claimed by making its file, which only one process can.

What stays for the rest of the run is an empty file for each round in which this client has opened shares: it opens
them once in a round. Training the same order again gives the same update, so that of two sums of a round, one with it
and one without, the difference would be that update.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fcit.errors import Refused, RunError
from fcit.federation.messages import NAME, OPENED
from fcit.io.files import read_json, sync
from fcit.privacy.secagg import keys

_SECRET = "secret"
_OPENED = "opened"  # folder of the rounds in which shares were opened; no session has this name


class Sessions:
    """The sessions of one client in one run.

    Args:
        folder: the client's own, in its memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sessions"

    def begin(self, session: str, stage: int, round_: int) -> bytes:
        """A new secret; all other sessions are over and removed.

        Raises:
            Refused: the session has begun before, its name is not one of this round, or in this round this client has
                opened shares.
        """
        prefix = f"{stage}-{round_}-"
        if not NAME.fullmatch(session) or not session.startswith(prefix):
            raise Refused(f"session: {session!r} is not the name of one of stage {stage}, round {round_} ({prefix}...)")
        if self._marker(session).exists():
            raise _opened(session)
        self.end(but=session)
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

    def close(self, session: str) -> None:
        """Note that shares are opened in this round, before they are sent, and remove the secret.

        Raises:
            Refused: they were, in this session or another of the round.
        """
        marker = self._marker(session)
        marker.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            marker.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            raise _opened(session) from None
        sync(marker.parent)
        self._file(session, _SECRET).unlink(missing_ok=True)

    def end(self, but: str | None = None) -> None:
        """Remove the sessions, with their secrets.

        Args:
            but: one that stays.
        """
        for other in self._folder.iterdir() if self._folder.is_dir() else ():
            if other.name not in (_OPENED, but):
                shutil.rmtree(other, ignore_errors=True)

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

    def _marker(self, session: str) -> Path:
        """Of the round that the session's name begins with, see :meth:`begin`."""
        return self._folder / _OPENED / "-".join(session.split("-")[:2])

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


def _opened(session: str) -> Refused:
    stage, round_ = session.split("-")[:2]
    return Refused(
        f"session {session}: of stage {stage}, round {round_} (from 0) {OPENED}; another one could reveal it"
    )
