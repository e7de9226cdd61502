"""Children that have to get on: one that ends or stands still is started again, and a file says so.

`fcit deploy status` and `fcit client status` print what stands in that file.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcit.deploy.child import Child, ending
from fcit.deploy.pulse import Pulse, stopped
from fcit.errors import DiskFull, RunError
from fcit.io.files import read_json, write_json

_WRITE = 5.0  # seconds between two writings of the file
_STALE = 30.0  # seconds without a writing after which who should write does not run


@dataclass
class Watched:
    """A child, what it shows of itself, and what has been wrong with it.

    Attributes:
        patience: seconds in which it must have ended when it is told to.
        deadly: pieces of text in its output after which it has to be started again, and what each means.
        talks: whether output is a sign of life: a SuperNode that tries again and again to send a reply does so in
            threads that its main one waits for, and says so each time.
        code: with which it last ended; negative for a signal.
    """

    child: Child
    pulse: Pulse
    patience: float
    deadly: dict[str, str]
    talks: bool = False
    starts: int = 0
    begun: float = 0.0
    fault: str = ""
    fault_time: float = 0.0
    code: int = 0
    lines: int = 0

    def look(self, selector: selectors.BaseSelector) -> str | None:
        """What is wrong with it now, if anything is; then it does not run any more and is due after a pause."""
        code = self.child.ended(selector)
        if code is not None:
            self.code = code
            return self._note(ending(code))
        process = self.child.process
        if process is None:
            return None
        if self.talks and self.child.lines != self.lines:
            self.lines = self.child.lines
            self.pulse.sign()
        still = self.pulse.fault(process.pid)
        if still is not None:
            return self._end(selector, still)
        meanings = (meaning for line in self.child.tail for piece, meaning in self.deadly.items() if piece in line)
        meaning = next(meanings, None)
        return None if meaning is None else self._end(selector, meaning)

    def start_if_due(self, selector: selectors.BaseSelector) -> int | None:
        """Start it if it does not run and its pause is over; its process id if it was started."""
        if self.child.process is not None or time.monotonic() < self.child.due:
            return None
        self.starts, self.begun = self.starts + 1, time.time()
        pid = self.child.start(selector)
        self.pulse.begin()
        return pid

    def stop(self, selector: selectors.BaseSelector) -> bool:
        """End it; False if it had to be killed."""
        return self.child.stop(selector, self.patience)

    def _end(self, selector: selectors.BaseSelector, fault: str) -> str:
        process = self.child.process
        # A stopped process does not hear that it is to end.
        deaf = process is not None and stopped(process.pid)
        if not self.child.stop(selector, 0.0 if deaf else self.patience):
            fault += ", did not end when told to and was killed"
        self.child.postpone()
        return self._note(fault)

    def _note(self, fault: str) -> str:
        self.fault, self.fault_time = fault, time.time()
        return fault

    @property
    def pause(self) -> float:
        """Seconds until it is started again."""
        return max(self.child.due - time.monotonic(), 0.0)

    def state(self) -> dict[str, Any]:
        """What the file says of it."""
        return {
            "name": self.child.name,
            "pid": None if self.child.process is None else self.child.process.pid,
            "since": round(self.begun, 1),
            "starts": self.starts,
            "fault": self.fault,
            "fault_time": round(self.fault_time, 1),
        }


class StateFile:
    """Writes what a supervisor knows of its children, every few seconds and at once after a change.

    Args:
        say: is told once when it cannot be written; the children run on.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self._say = path, say
        self._written: dict[str, Any] | None = None
        self._due, self._failed = 0.0, False

    def write(self, watched: Sequence[Watched], **more: Any) -> None:
        """Write the file if something has changed or its time has come."""
        values: dict[str, Any] = {"processes": [one.state() for one in watched], **more}
        if values == self._written and time.monotonic() < self._due:
            return
        try:
            write_json(self.path, {"time": round(time.time(), 1), **values}, durable=False)
        except (OSError, DiskFull) as error:
            if not self._failed:
                self._say(f"what runs is not written down any more: {error}")
            self._failed = True
        else:
            self._failed = False
        self._written, self._due = values, time.monotonic() + _WRITE

    def remove(self) -> None:
        """The supervisor ends."""
        self.path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """What a supervisor has written; None if none runs that writes there.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    state = read_json(path)
    if not isinstance(state, dict) or not isinstance(state.get("processes"), list):
        raise RunError(f"{path}: damaged; it is written anew while the processes run, so remove it")
    return state if time.time() - float(state["time"]) < _STALE else None


def rows(state: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, state and last fault of each process, for a table."""
    return [(str(one["name"]), _runs(one), _last(one)) for one in state["processes"]]


def _runs(one: dict[str, Any]) -> str:
    if one["pid"] is None:
        return "waits to be started again"
    return f"runs since {_stamp(one['since'])}, process {one['pid']}"


def _last(one: dict[str, Any]) -> str:
    if not one["fault"]:
        return "-"
    return f"{_stamp(one['fault_time'])}: it {one['fault']}; started {one['starts']} times"


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
