"""The Ray engine: long-lived worker processes, on one machine or several.

A ``flwr.serverapp.Grid`` like the inline one. Tensors that several orders share are put into the object store once.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from flwr.app import Array, Message
from flwr.clientapp import ClientApp
from ray import exceptions as lost

from fcit.config import RunConfig
from fcit.errors import ConfigError, FCITError, RunError
from fcit.federation import codec
from fcit.federation.engines.pool import Job, PoolGrid, Seat
from fcit.federation.engines.ray_worker import RayWorker, pack, unpack
from fcit.federation.engines.worker import Outcome

#: Errors by which Ray reports that a process has ended (also by the kernel's or Ray's own memory guard).
_DEAD = (lost.RayActorError, lost.WorkerCrashedError, lost.OutOfMemoryError, lost.NodeDiedError, lost.ObjectLostError)


def _address(configured: str | None) -> str | None:
    """The cluster to use: ``auto`` is what RAY_ADDRESS says now, as a run that goes on may find another cluster.

    Raises:
        ConfigError: it says nothing.
    """
    if configured != "auto":
        return configured
    address = os.environ.get("RAY_ADDRESS", "")
    if ":" not in address:
        raise ConfigError(
            f"ray.address: 'auto' takes host:port from the variable RAY_ADDRESS, which is {address!r}; set it, or give "
            "ray.address=HOST:PORT"
        )
    return address


class RayGrid(PoolGrid):
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
    section = "ray"

    def __init__(self, client_app: ClientApp | None, clients: int, config: RunConfig, memory: Path) -> None:
        super().__init__(clients, config.ray.attempts)
        self._config, self._options, self._memory = config, config.ray, memory
        self._refs: dict[int, Any] = {}  # of orders that workers have, by the seat's number
        self._own: Path | None = None
        self._before = signal.getsignal(signal.SIGTERM)  # Ray puts its own handler in
        try:
            self._connect()
            self._seats = [Seat(n, self._worker()) for n in range(self._options.workers)]
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
        address = _address(options.address)
        try:
            if address is not None:
                # Ray itself tries for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=address, **common)
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
            where = f"ray.address {address!r}" if address else f"a private Ray in {self._own}"
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
        waiting = [seat.worker.ready.remote() for seat in self._seats]
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
            ray.kill(seat.worker)
        self._seats = []
        self._queue.clear()
        if ray.is_initialized():
            ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own = None

    def statistics(self) -> list[dict[str, Any]]:
        """What each worker did, see :meth:`RayWorker.statistics`."""
        return ray.get([seat.worker.statistics.remote() for seat in self._seats])

    # ------------------------------------------------------------------ orders

    def _jobs(self, messages: list[Message]) -> list[Job]:
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
            jobs.append(Job(message, head, own))
        return jobs

    def _begin(self, seat: Seat, job: Job) -> None:
        meta = job.message.metadata
        self._refs[seat.number] = seat.worker.work.remote(
            meta.message_type, meta.dst_node_id, meta.group_id, job.head, *job.parts
        )

    def _ready(self, busy: Sequence[Seat], timeout: float) -> list[Seat]:
        waiting = {self._refs[seat.number]: seat for seat in busy}
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout)
        return [waiting[ref] for ref in ready]

    def _outcome(self, seat: Seat) -> Outcome:
        try:
            kind, text, bundle = ray.get(self._refs.pop(seat.number))
        except _DEAD as error:
            return Outcome("lost", f"{type(error).__name__}: {str(error).splitlines()[0]}", {})
        except lost.RayTaskError as error:
            if isinstance(error.cause, FCITError):
                raise error.cause from None
            raise RunError(f"a Ray worker failed: {error}") from None
        return Outcome(kind, text, unpack(bundle))

    def _renew(self, seat: Seat) -> None:
        ray.kill(seat.worker)
        self._refs.pop(seat.number, None)
        seat.worker = self._worker()
