"""The Ray engine: long-lived worker processes, on one machine or several.

A ``flwr.serverapp.Grid`` like the inline one. Each worker holds the backbone for the whole run and
takes one order at a time from the common queue; tensors that several orders share are put into the
object store once. A worker that dies is replaced and its order given out again.
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from flwr.app import Array, Error, Message
from flwr.clientapp import ClientApp
from ray import exceptions as lost

from fcit.config import RunConfig
from fcit.errors import ConfigError, FCITError, RunError
from fcit.federation import codec
from fcit.federation.engines.ray_worker import Bundle, RayWorker, pack, unpack
from fcit.federation.engines.virtual import VirtualGrid
from fcit.federation.nodes import CLIENT_RAISED, FIRST_NODE

#: Errors by which Ray reports that a process has ended (also by the kernel's or Ray's own memory guard).
_DEAD = (lost.RayActorError, lost.WorkerCrashedError, lost.OutOfMemoryError, lost.NodeDiedError, lost.ObjectLostError)


@dataclass
class _Job:
    """One order: where it goes, its text, its tensors in the object store."""

    message: Message
    head: str
    bundles: list[Any]
    lost: list[str] = field(default_factory=list)  # why each worker that had it died


@dataclass
class _Seat:
    """A place for a worker; the worker in it may be replaced."""

    number: int
    actor: Any
    job: _Job | None = None
    ref: Any = None


class RayGrid(VirtualGrid):
    """Runs messages on Ray actors.

    Args:
        client_app: None; not sent anywhere: workers import ``clients.app`` of the installed package.
        clients: number of virtual clients.
        config: sections ``ray`` and ``backbone.threads`` are read.
        memory: folder in which clients may remember between their orders (on a cluster: a shared one).

    Raises:
        ConfigError: the cluster cannot be reached or has too few cores or GPUs.
    """

    summary = "long-lived Ray workers, on one machine or several"

    def __init__(self, client_app: ClientApp | None, clients: int, config: RunConfig, memory: Path) -> None:
        super().__init__(clients)
        self._config, self._options, self._memory = config, config.ray, memory
        self._queue: deque[_Job] = deque()
        self._done: dict[str, Message] = {}
        self._last_seat: dict[int, int] = {}
        self._own: Path | None = None
        self._before = signal.getsignal(signal.SIGTERM)  # Ray puts its own handler in
        self._seats: list[_Seat] = []
        try:
            self._connect()
            self._seats = [_Seat(n, self._worker()) for n in range(self._options.workers)]
            self._await_start()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ cluster

    def _connect(self) -> None:
        options = self._options
        common: dict[str, Any] = {
            "log_to_driver": False,
            "configure_logging": True,
            "logging_level": logging.ERROR,
            "namespace": f"fcit-{time.time_ns()}",
        }
        if ray.is_initialized():
            raise ConfigError("federation.engine: this process already uses Ray; one Ray run at a time")
        try:
            if options.address is not None:
                # Ray itself tries for minutes.
                host, _, port = options.address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=options.address, **common)
            else:
                # Paths of Unix sockets are short: a private folder right under the temporary one.
                self._own = Path(tempfile.mkdtemp(prefix="fcit-", dir=options.temp_dir))
                ray.init(
                    address="local",
                    num_cpus=options.workers * options.num_cpus,
                    include_dashboard=False,
                    object_store_memory=options.object_store_mb * 1024**2,
                    _temp_dir=str(self._own),
                    # Ray's workers are nice to others by default; here they do the very work of the run.
                    _node_ip_address="127.0.0.1",
                    _system_config={"worker_niceness": 0},
                    **common,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"ray.address {options.address!r}" if options.address else f"a private Ray in {self._own}"
            hint = "; give ray.temp_dir a short path" if "AF_UNIX" in str(error) else ""
            raise ConfigError(f"{where}: cannot start ({str(error).splitlines()[0]}){hint}") from None
        resources = ray.cluster_resources()
        for key, wanted in (("CPU", options.workers * options.num_cpus), ("GPU", options.workers * options.num_gpus)):
            if resources.get(key, 0) < wanted:
                raise ConfigError(
                    f"ray.workers: {options.workers} workers need {wanted:g} {key}s, the cluster has "
                    f"{resources.get(key, 0):g}; lower ray.workers or ray.num_{key.lower()}s"
                )

    def _worker(self) -> Any:
        options = self._options
        make = ray.remote(RayWorker).options(
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        threads = self._config.backbone.threads or options.num_cpus
        return make.remote(self._clients, threads, str(self._memory.resolve()))

    def _await_start(self) -> None:
        waiting = [seat.actor.ready.remote() for seat in self._seats]
        _, late = ray.wait(waiting, num_returns=len(waiting), timeout=self._options.start_timeout)
        if late:
            raise RunError(
                f"{len(late)} of {len(waiting)} Ray workers did not start within {self._options.start_timeout:.0f} s "
                "(ray.start_timeout); is the machine busy, or fcit missing on a machine of the cluster?"
            )
        try:
            self.pids: list[int] = ray.get(waiting)
        except lost.RayError as error:
            raise RunError(f"a Ray worker could not start: {error}") from None

    def close(self) -> None:
        """End the workers; a private cluster goes away with its files."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []
        self._queue.clear()
        if ray.is_initialized():
            ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own = None

    @property
    def busy(self) -> int:
        """Workers with an order in hand."""
        return sum(seat.job is not None for seat in self._seats)

    def statistics(self) -> list[dict[str, Any]]:
        """What each worker did, see :meth:`RayWorker.statistics`."""
        return ray.get([seat.actor.statistics.remote() for seat in self._seats])

    # ------------------------------------------------------------------ the Grid interface

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        jobs = self._jobs(list(messages))
        self._queue.extend(jobs)
        self._hand_out()
        return [job.message.metadata.message_id for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._collect(0.0)
        return [self._done.pop(key) for key in message_ids if key in self._done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies as they come; those missing after ``timeout`` seconds are given up."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while waiting:
                left = 3600.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    break
                self._collect(left)
                for key in [key for key in self._done if key in waiting]:
                    waiting.discard(key)
                    yield self._done.pop(key)
        finally:
            self._give_up(waiting)

    # ------------------------------------------------------------------ queue

    def _jobs(self, messages: list[Message]) -> list[_Job]:
        """Number the messages; tensors that the same messages share travel as one object."""
        parts = [codec.take_apart(message.content) for message in messages]
        # Records wrap their arrays anew, so it is the bytes that tell whether two messages share a tensor.
        users: dict[tuple[str, int], list[int]] = {}
        for index, (_, arrays) in enumerate(parts):
            for name, array in arrays.items():
                users.setdefault((name, id(array.data)), []).append(index)
        groups: dict[tuple[int, ...], dict[str, Array]] = {}
        for (name, _), indices in users.items():
            groups.setdefault(tuple(indices), {})[name] = parts[indices[0]][1][name]
        bundles: list[list[Any]] = [[] for _ in messages]
        for sharing, group in groups.items():
            stored = ray.put(pack(group))
            for index in sharing:
                bundles[index].append(stored)
        jobs = []
        for message, (head, _), own in zip(messages, parts, bundles, strict=True):
            self._number(message)
            jobs.append(_Job(message, head, own))
        return jobs

    def _hand_out(self) -> None:
        """Give every idle worker an order, rather one of a client it has worked for."""
        for seat in self._seats:
            if seat.job is None and self._queue:
                known = (j for j in self._queue if self._last_seat.get(j.message.metadata.dst_node_id) == seat.number)
                job = next(known, self._queue[0])
                self._queue.remove(job)
                meta = job.message.metadata
                self._last_seat[meta.dst_node_id] = seat.number
                seat.job = job
                seat.ref = seat.actor.work.remote(
                    meta.message_type, meta.dst_node_id, meta.group_id, job.head, *job.bundles
                )

    def _collect(self, timeout: float) -> None:
        """Wait until at least one order is finished (or the time is up) and hand out new ones."""
        busy = {seat.ref: seat for seat in self._seats if seat.job is not None}
        if busy:
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
            for ref in ready:
                self._finish(busy[ref])
        self._hand_out()

    def _finish(self, seat: _Seat) -> None:
        job, seat.job = seat.job, None
        if job is None:
            return
        try:
            kind, text, bundle = ray.get(seat.ref)
        except _DEAD as error:
            self._replace(seat, job, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return
        except lost.RayTaskError as error:
            if isinstance(error.cause, FCITError):
                raise error.cause from None
            raise RunError(f"a Ray worker failed: {error}") from None
        if kind == "memory":
            self._replace(seat, job, f"out of memory: {text}")
            return
        self._done[job.message.metadata.message_id] = self._reply(job, kind, text, bundle)

    def _reply(self, job: _Job, kind: str, text: str, bundle: Bundle) -> Message:
        if kind == "error":
            return Message(Error(code=CLIENT_RAISED, reason=text), reply_to=job.message)
        return Message(codec.put_together(text, unpack(bundle)), reply_to=job.message)

    def _replace(self, seat: _Seat, job: _Job, reason: str) -> None:
        """A new worker in the seat; the order goes first in the queue.

        Raises:
            RunError: this order has cost too many workers.
        """
        ray.kill(seat.actor)
        seat.actor, seat.ref = self._worker(), None
        job.lost.append(reason)
        if len(job.lost) >= self._options.attempts:
            meta = job.message.metadata
            raise RunError(
                f"the {meta.message_type} order of client {meta.dst_node_id - FIRST_NODE} lost its worker "
                f"{len(job.lost)} times (ray.attempts), last: {reason}; give workers more memory "
                "(fewer ray.workers, a smaller training.batch_size) and resume the run"
            )
        self._queue.appendleft(job)

    def _give_up(self, waiting: set[str]) -> None:
        """Forget orders; a worker still busy with one is replaced, so that the next order need not wait for it."""
        self._queue = deque(job for job in self._queue if job.message.metadata.message_id not in waiting)
        for key in waiting:
            self._done.pop(key, None)
        for seat in self._seats:
            if seat.job is not None and seat.job.message.metadata.message_id in waiting:
                ray.kill(seat.actor)
                seat.actor, seat.job, seat.ref = self._worker(), None, None
