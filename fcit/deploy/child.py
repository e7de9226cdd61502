"""A child process: its output goes to a log, its end is noticed, it can be started again after a while.

The operator's `fcit deploy up` (SuperLink, SuperExec, door) and a site's `fcit client start` (SuperNode, executor)
look after such processes; `fcit.deploy.watched` says when one has to be started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fcit.io.printable import printable

_LIBC = ctypes.CDLL(None)  # loaded here: nothing may be imported between fork and exec
_PR_SET_PDEATHSIG = 1
_SETTLED = 60.0  # seconds after which a child counts as well started
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TAIL = 40  # last lines of its output, looked at for the reason of its end


def with_parent(number: int) -> Callable[[], None]:
    """What a child does before it starts: ask the kernel (Linux) for signal ``number`` when its parent ends."""
    parent = os.getpid()

    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return ask


def ending(code: int) -> str:
    """How a process ended."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}" + ("; out of memory?" if code == -signal.SIGKILL else "")
    return f"ended with {code}"


class Child:
    """One supervised process; files it makes are this user's only.

    Args:
        name: how the log calls it.
        log: gets every line of its output, without colours and other control sequences.
        wait: seconds before the second start and, doubled each time, before later ones, at most the second number.
        deathsig: signal that it gets if this process itself is killed.
        dropped: lines with this piece of text are neither logged nor kept.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        log: logging.Logger,
        wait: tuple[float, float],
        deathsig: int,
        dropped: str | None = None,
    ) -> None:
        self.name, self.command, self.env, self.cwd, self.log = name, list(command), dict(env), cwd, log
        self.wait, self.deathsig, self.dropped = wait, deathsig, dropped
        self.process: subprocess.Popen[bytes] | None = None
        self.due, self.begun, self.failures = 0.0, 0.0, 0
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.lines = 0  # of output, in all
        self._rest = b""

    def start(self, selector: selectors.BaseSelector) -> int:
        """Start it and return its process id; the selector says when there is output to :meth:`read`.

        It gets a session of its own: Ctrl-C reaches the parent only, which then ends its children in order.
        """
        self.tail.clear()
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            preexec_fn=with_parent(self.deathsig),
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        selector.register(self.process.stdout, selectors.EVENT_READ, self)
        return self.process.pid

    def read(self) -> bool:
        """Copy what it wrote into the log; False at the end of its output."""
        assert self.process is not None and self.process.stdout is not None
        data = self.process.stdout.read()
        if data is None:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        self.lines += len(lines)
        for line in lines:
            text = printable(_COLOUR.sub("", line.decode("utf-8", "replace"))).rstrip()
            if text and (self.dropped is None or self.dropped not in text):
                self.tail.append(text)
                self.log.info("%s", text)
        return bool(data)

    def ended(self, selector: selectors.BaseSelector) -> int | None:
        """Its exit code once it has ended; what it started ends with it, and when to start it again is decided."""
        if self.process is None or self.process.poll() is None:
            return None
        code = self.process.returncode
        self._forget(selector)
        self.postpone()
        return code

    def postpone(self) -> None:
        """Decide when to start it again, after it has ended or was stopped because something was wrong with it."""
        settled = time.monotonic() - self.begun > _SETTLED
        self.failures = 1 if settled else self.failures + 1
        first, longest = self.wait
        self.due = time.monotonic() + min(longest, first * 2.0 ** min(self.failures - 1, 10))

    def stop(self, selector: selectors.BaseSelector, patience: float) -> bool:
        """End it and all it started: SIGTERM, after ``patience`` seconds SIGKILL. False if it had to be killed."""
        process = self.process
        if process is None:
            return True
        process.terminate()
        deadline = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < deadline:
            self.read()  # a full pipe would keep it from ending
            time.sleep(0.05)
        clean = process.poll() is not None
        self._forget(selector)
        return clean

    def _forget(self, selector: selectors.BaseSelector) -> None:
        """Kill what is left of its session, read the end of its output."""
        assert self.process is not None and self.process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.read()
        selector.unregister(self.process.stdout)
        self.process.stdout.close()
        self.process = None


def read_output(selector: selectors.BaseSelector, seconds: float) -> None:
    """Wait for output of the children, at most so long, and read it."""
    for key, _ in selector.select(timeout=seconds):
        if not key.data.read():
            time.sleep(0.05)  # its output has ended, so will it
