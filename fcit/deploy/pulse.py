"""Signs of life of a process, from Linux's /proc: whether it gets on, not only whether it exists.

A process whose main thread has ended lives on while another thread of it does, and one that is stopped or waits for
ever lives on as well. What grows in every one that works are its context switches and its processor time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

#: Says of a process id something that is another value whenever the process has got on.
Signs = Callable[[int], Hashable]

_STOPPED = "Tt"  # states of /proc/PID/stat: stopped by a signal, or by a debugger
_ENDED = "ZX"  # and not yet waited for by the process that has started it
HALTED = 10.0  # seconds after which a process that a signal has stopped is not waited for any more
_GAP = 5.0  # seconds that the time between two looks counts for at most: beyond, the one who looks has stood still
_OPEN = "01", "02"  # states of a connection in /proc/net/tcp: established, being opened


def _fields(pid: int, task: int) -> list[str]:
    """Fields of ``stat`` of a thread after its name: state, ..., user and system time as the 12th and 13th."""
    return Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()


def _work(pid: int, task: int) -> tuple[int, int]:
    """Context switches and clock ticks of a thread; zeros once it has ended."""
    try:
        status = Path(f"/proc/{pid}/task/{task}/status").read_text()
        fields = _fields(pid, task)
    except OSError:
        return 0, 0
    switches = sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
    return switches, int(fields[11]) + int(fields[12])


def _tasks(pid: int) -> list[int]:
    try:
        return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found: list[int] = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return [child for child in found if not _in_state(child, _ENDED)]


def stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process."""
    return _in_state(pid, _STOPPED)


def _in_state(pid: int, states: str) -> bool:
    try:
        return _fields(pid, pid)[0] in states
    except OSError:
        return False


def main_thread(pid: int) -> Hashable:
    """What a process' main thread has done so far."""
    return _work(pid, pid)


def whole(pid: int) -> Hashable:
    """What all threads of a process and of those that it has started have done so far."""
    work = tuple((task, *_work(pid, task)) for task in sorted(_tasks(pid)))
    return work, tuple(whole(child) for child in children(pid))


def connected(pid: int, served: int) -> bool:
    """Whether a process has, or opens, a TCP connection that it has made itself, not one to the port it serves."""
    own = set()
    try:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(handle.readlink()))
        rows = [line.split() for name in ("tcp", "tcp6") for line in _table(pid, name)]
    except OSError:
        return False
    return any(
        row[3] in _OPEN and int(row[1].rpartition(":")[2], 16) != served and f"socket:[{row[9]}]" in own for row in rows
    )


def _table(pid: int, name: str) -> list[str]:
    table = Path(f"/proc/{pid}/net/{name}")
    return table.read_text().splitlines()[1:] if table.is_file() else []


def of_supernode(port: int) -> Signs:
    """Signs of a SuperNode: its main thread looks for orders every three seconds, while one is done twice a second.

    While parts of an order come or go, other threads carry them and the main one waits; then its connection to the
    door is open, and Flower gives up a connection on which nothing comes for 30 s. Once the main thread has ended,
    there is none any more. The thread that serves the executor always works, so it proves nothing.

    Args:
        port: the one it serves its executor on.
    """

    def signs(pid: int) -> Hashable:
        if not stopped(pid) and connected(pid, port):
            return object()
        return main_thread(pid)

    return signs


class Answers:
    """Signs of a server: how often it has answered, asked by a thread of its own.

    Args:
        ask: returns when the server has answered, raises OSError if it does not.
        every: seconds between two questions.
    """

    def __init__(self, ask: Callable[[], None], every: float = 10.0) -> None:
        self.count = 0
        self._ask, self._every, self._over = ask, every, threading.Event()
        self._thread = threading.Thread(target=self._keep_asking, daemon=True)
        self._thread.start()

    def __call__(self, pid: int) -> Hashable:
        """Answers so far."""
        return self.count

    def close(self) -> None:
        """Ask no more."""
        self._over.set()

    def _keep_asking(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):  # that no answer comes is what is looked for
                self._ask()
                self.count += 1
            self._over.wait(self._every)


class Pulse:
    """For how long a process has shown no sign of life.

    A gap in which nobody looked (this process was itself stopped, or the machine was) counts for a few seconds only.

    Args:
        signs: what is looked at.
        limit: seconds without a sign after which it counts as standing still.
        clock: seconds.
    """

    def __init__(self, signs: Signs, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.signs, self.limit, self._clock = signs, limit, clock
        self._last: Hashable = None
        self._since = self._running = self._looked = clock()

    def begin(self) -> None:
        """A new process: its time begins now."""
        self._last = None
        self._since = self._running = self._looked = self._clock()

    def sign(self) -> None:
        """A sign of life was seen elsewhere."""
        self._since = self._clock()

    def fault(self, pid: int) -> str | None:
        """Look at it; what is wrong if it has stood still for too long."""
        now, signs = self._clock(), self.signs(pid)
        gap, self._looked = max(now - self._looked - _GAP, 0.0), now
        self._since, self._running = self._since + gap, self._running + gap
        if signs != self._last:
            self._last, self._since = signs, now
        if not stopped(pid):
            self._running = now
        if now - self._since > self.limit:
            return f"has shown no sign of life for {now - self._since:.0f} s"
        if now - self._running > HALTED:
            return f"has been stopped (SIGSTOP) for {now - self._running:.0f} s"
        return None
