"""Carries out the runs, several processes at a time, each an ordinary ``fcit resume`` of its folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fcit.bench import folders
from fcit.bench.plan import Planned
from fcit.errors import EXIT_STOPPED
from fcit.io.threads import cores

PAUSE = 0.2  # seconds between two polls


class Watcher(Protocol):
    """Receives the progress of a bench."""

    def started(self, slot: int, run: Planned) -> None:
        """A run was started in a slot."""

    def ended(self, slot: int, run: Planned, problem: str | None) -> None:
        """A run has ended; ``problem`` states why it failed."""

    def look(self) -> None:
        """Time has passed."""

    def stopping(self, killed: bool) -> None:
        """The runs were sent a request to stop, or killed."""


def resume(run: Planned) -> list[str]:
    """The command that starts or resumes a run."""
    return [sys.executable, "-m", "fcit.cli", "resume", str(run.folder)]


def gpus(runs: list[Planned]) -> list[str]:
    """GPUs for runs that need one, as in CUDA_VISIBLE_DEVICES; all together where a run may spread over them."""
    devices = {run.config.backbone.device for run in runs} - {"cpu"}
    if not devices:
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        import torch

        given = ",".join(str(number) for number in range(torch.cuda.device_count()))
    if "auto" in devices:
        return [given] if given else []
    return [name for name in given.split(",") if name]


@dataclass
class Outcome:
    """The outcome of a schedule."""

    finished: list[Planned] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # run name -> reason
    stopped: int = 0  # the signal that ended the bench


@dataclass(frozen=True)
class _Going:
    run: Planned
    process: subprocess.Popen[bytes]


class Schedule:
    """Carries out runs in order, ``jobs`` at a time; a failing run does not stop the others.

    After SIGINT or SIGTERM active runs stop at their next checkpoint; a second signal kills them.
    """

    def __init__(
        self,
        runs: list[Planned],
        jobs: int,
        watcher: Watcher,
        devices: list[str] | None = None,
        command: Callable[[Planned], list[str]] = resume,
    ) -> None:
        self.waiting, self.jobs, self.watcher, self.command = list(runs), jobs, watcher, command
        self.devices = devices or []
        self.going: dict[int, _Going] = {}
        self._requests: list[int] = []
        self.outcome = Outcome()

    def work(self) -> Outcome:
        """Carry out all runs, or stop at a signal."""
        with self._signals():
            while self.going or (self.waiting and not self.outcome.stopped):
                if not self.outcome.stopped:
                    for slot in range(self.jobs):
                        while slot not in self.going and self.waiting:
                            self._start(slot, self.waiting.pop(0))
                self.watcher.look()  # after the next runs were started, so that it delays none
                time.sleep(PAUSE)
                self._heed()
                for slot, going in list(self.going.items()):
                    if going.process.poll() is not None:
                        del self.going[slot]
                        self._end(slot, going)
        return self.outcome

    def _start(self, slot: int, run: Planned) -> None:
        lock = folders.claim(run)
        if lock is None:
            self._fail(slot, run, "another process is at work in its folder")
            return
        if folders.state(run) == "done":  # by another process meanwhile
            os.close(lock)
            return
        folders.place(run)
        with (run.folder / folders.LOG).open("ab") as log:
            process = subprocess.Popen(
                self.command(run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(slot, run),
                pass_fds=(lock,),
                start_new_session=True,
            )
        os.close(lock)  # now held by the process of the run
        self.going[slot] = _Going(run, process)
        self.watcher.started(slot, run)

    def _environment(self, slot: int, run: Planned) -> dict[str, str]:
        threads = run.config.backbone.threads or max(1, cores() // self.jobs)
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return variables

    def _end(self, slot: int, going: _Going) -> None:
        code, run = going.process.returncode, going.run
        if code == 0 and folders.state(run) == "done":
            self.outcome.finished.append(run)
            self.watcher.ended(slot, run, None)
        elif self.outcome.stopped and code in (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGKILL):
            self.watcher.ended(slot, run, "stopped")
        else:
            self._fail(slot, run, f"exit {code}: {folders.last_line(run)}")

    def _fail(self, slot: int, run: Planned, why: str) -> None:
        self.outcome.failed[run.name] = why
        self.watcher.ended(slot, run, why)

    # ------------------------------------------------------------------ stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._send(signal.SIGKILL)  # only after an error here

    def _asked(self, number: int, frame: Any) -> None:
        self._requests.append(number)

    def _heed(self) -> None:
        """Forward signals to the runs."""
        while self._requests:
            number, again = self._requests.pop(0), bool(self.outcome.stopped)
            self.outcome.stopped = self.outcome.stopped or number
            self._send(signal.SIGKILL if again else signal.SIGTERM)
            self.watcher.stopping(again)

    def _send(self, number: int) -> None:
        """Send SIGTERM to the runs, or SIGKILL to them and all processes they started."""
        for going in self.going.values():
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(going.process.pid, number)
                elif going.process.poll() is None:
                    going.process.send_signal(number)
