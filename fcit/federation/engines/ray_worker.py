"""What runs inside a Ray worker process."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array

from fcit.federation.engines.worker import Order, Worker
from fcit.io import collector
from fcit.runs.environment import own_packages_first

#: Tensors of a message as they travel: name -> (dtype, shape, serialisation, bytes as uint8).
Bundle = dict[str, tuple[str, tuple[int, ...], str, np.ndarray]]


def pack(arrays: dict[str, Array]) -> Bundle:
    """Arrays as plain values; nothing but numbers and texts enters the object store."""
    return {n: (a.dtype, tuple(a.shape), a.stype, np.frombuffer(a.data, np.uint8)) for n, a in arrays.items()}


def unpack(bundle: Bundle) -> dict[str, Array]:
    """The inverse of :func:`pack`."""
    return {n: Array(dtype, shape, stype, data.tobytes()) for n, (dtype, shape, stype, data) in bundle.items()}


class RayWorker:
    """Lives as long as the run; the modules it imports keep the backbone."""

    def __init__(self, clients: int, threads: int, memory: str) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        own_packages_first()
        with collector.paused():
            import torch

            from clients.app import app
        collector.settle()
        torch.set_num_threads(threads)
        self._worker = Worker(app, clients, Path(memory))
        self._orders = 0

    def ready(self) -> int:
        """The process id, once everything is imported."""
        return os.getpid()

    def work(self, kind: str, node: int, group: str, head: str, *bundles: Bundle) -> tuple[str, str, Bundle]:
        """Carry out one order; returns ``("content", head, tensors)`` or ``("error" | "memory", reason, {})``."""
        self._orders += 1
        arrays: dict[str, Array] = {}
        for bundle in bundles:
            arrays |= unpack(bundle)
        outcome = self._worker.work(Order(kind, node, group, head, arrays))
        return outcome.kind, outcome.text, pack(outcome.arrays)

    def statistics(self) -> dict[str, Any]:
        """Process id, orders done, how often a backbone was loaded, peak resident memory in MB."""
        from clients.worker.worker import loads

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"pid": os.getpid(), "orders": self._orders, "loads": loads(), "peak_mb": round(peak, 1)}
