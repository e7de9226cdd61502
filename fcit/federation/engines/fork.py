"""The fork engine: worker processes of one thread on this machine that share one loaded model.

A first process is forked off before anything else happens. It carries out the first order, by which libraries and
model get loaded, and from then on only forks workers, which begin with all of that in memory and share its pages with
it. It has no threads and has run no parallel region of OpenMP, so that forking is safe at any time of the run, for a
replacement too, whatever threads the server's process has by then.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.clientapp import ClientApp

from fcit import errors
from fcit.config import RunConfig
from fcit.errors import ConfigError, FCITError, RunError
from fcit.federation import codec
from fcit.federation.engines import fork_process, frames
from fcit.federation.engines.pool import Job, PoolGrid, Seat
from fcit.federation.engines.worker import Outcome, Worker
from fcit.runs import forking


class Process(NamedTuple):
    """A worker process as the server's process sees it."""

    pid: int
    link: socket.socket


class ForkGrid(PoolGrid):
    """Runs messages on forked processes.

    Args:
        client_app: the ClientApp, imported; its work is done in the other processes only.
        clients: number of virtual clients.
        config: sections ``fork`` and ``backbone`` are read.
        memory: folder in which clients may remember between their orders.

    Raises:
        ConfigError: processes cannot be forked here, or not with this configuration.
    """

    summary = "processes of one thread on this machine that share one loaded model (Linux, no GPU)"
    here = True
    section = "fork"

    def __init__(self, client_app: ClientApp, clients: int, config: RunConfig, memory: Path) -> None:
        super().__init__(clients, config.fork.attempts)
        problem = forking.problem(config)
        if problem is not None:
            raise ConfigError(problem)
        self._wanted = forking.workers(config)
        self._worker = Worker(client_app, clients, memory)
        self._nursery = Nursery(self._worker)
        # Until it has carried out one order, the first process is the only worker.
        self._seats = [Seat(0, self._nursery.first)]
        self._loaded = False

    def close(self) -> None:
        """End all processes."""
        for seat in self._seats:
            seat.worker.link.close()
        self._seats = []
        self._queue.clear()
        self._nursery.close()

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [seat.worker.pid for seat in self._seats]

    # ------------------------------------------------------------------ orders

    def _jobs(self, messages: list[Message]) -> list[Job]:
        jobs = []
        for message in messages:
            self._number(message)
            jobs.append(Job(message, *codec.take_apart(message.content)))
        return jobs

    def _begin(self, seat: Seat, job: Job) -> None:
        meta = job.message.metadata
        fields = {"kind": meta.message_type, "node": meta.dst_node_id, "group": meta.group_id, "head": job.head}
        with suppress(OSError):  # it died while idle: its outcome will be that it is lost
            frames.send(seat.worker.link, fields, job.parts)

    def _ready(self, busy: Sequence[Seat], timeout: float) -> list[Seat]:
        seats = {seat.worker.link.fileno(): seat for seat in busy}
        poll = select.poll()
        for descriptor in seats:
            poll.register(descriptor, select.POLLIN)
        return [seats[descriptor] for descriptor, _ in poll.poll(1000 * timeout)]

    def _outcome(self, seat: Seat) -> Outcome:
        try:
            fields, arrays = frames.receive(seat.worker.link)
        except EOFError:
            if self._loaded:
                return Outcome("lost", self._nursery.end(seat.worker), {})
            raise RunError(f"fork: the process that loads the model {self._nursery.close()}") from None
        if fields["kind"] == "fatal":
            raise _error(fields["name"], fields["text"])
        if not self._loaded and fields["kind"] != "memory":
            self._loaded = True
            self._seats = [Seat(number, self._nursery.fork()) for number in range(self._wanted)]
        return Outcome(fields["kind"], fields["text"], arrays)

    def _renew(self, seat: Seat) -> None:
        if self._loaded:
            self._nursery.end(seat.worker)
            seat.worker = self._nursery.fork()
        else:
            self._nursery.close()
            self._nursery = Nursery(self._worker)
            seat.worker = self._nursery.first


class Nursery:
    """The first process, from which workers are forked; see the module.

    Args:
        worker: what it and all others carry out orders with.
    """

    def __init__(self, worker: Worker) -> None:
        self._control, control = socket.socketpair()
        link, far = socket.socketpair()
        sys.stdout.flush()  # else the other process would hold a copy of what is not written yet
        sys.stderr.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._control.close()
            link.close()
            fork_process.nursery(worker, control, far, server)
        control.close()
        far.close()
        self._ended: dict[int, str] = {}
        self._closed = ""
        self._forking = False
        self.first = Process(pid, link)

    def fork(self) -> Process:
        """A new worker.

        Raises:
            RunError: the first process has died.
        """
        self._forking = True
        link, far = socket.socketpair()
        with far:
            reply = self._ask(fork_process.START, 0, [far.fileno()])
        return Process(reply, link)

    def end(self, process: Process) -> str:
        """Kill a worker if it still lives; returns how it ended."""
        if process.pid not in self._ended:
            process.link.close()
            self._ended[process.pid] = _ending(self._ask(fork_process.END, process.pid, []))
        return self._ended[process.pid]

    def close(self) -> str:
        """End the first process and with it all others; returns how it ended."""
        if not self._closed:
            self._control.close()  # after the first order it waits for requests; then it ends and waits for its workers
            if not self._forking:
                os.kill(self.first.pid, signal.SIGKILL)
            self._closed = _ending(os.waitstatus_to_exitcode(os.waitpid(self.first.pid, 0)[1]))
            self.first.link.close()
        return self._closed

    def _ask(self, what: bytes, number: int, descriptors: list[int]) -> int:
        try:
            socket.send_fds(self._control, [fork_process.REQUEST.pack(what, number)], descriptors)
            reply = self._control.recv(fork_process.REPLY.size, socket.MSG_WAITALL)
        except OSError:
            reply = b""
        if len(reply) < fork_process.REPLY.size:
            raise RunError(f"fork: the process that workers are forked from {self.close()}; resume the run")
        (answer,) = fork_process.REPLY.unpack(reply)
        return int(answer)


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _error(name: str, text: str) -> Exception:
    """An error about the run, as its process raised it."""
    kind: Any = getattr(errors, name, RunError)
    return kind(text) if issubclass(kind, FCITError) else RunError(text)


class Auto:
    """Chooses ``fork`` where it is safe and faster, see :func:`fcit.runs.forking.preferred`, else ``inline``."""

    summary = "fork where that is safe and faster, else inline"

    @staticmethod
    def of(config: RunConfig) -> Any:
        """The engine for a configuration."""
        from fcit.federation.engines.inline import InlineGrid

        return ForkGrid if forking.preferred(config) else InlineGrid
