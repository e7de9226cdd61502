"""Memory and speed of a run's device, read from the device or assumed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from fcit.fedopt.products import one_thread
from fcit.io import threads as pools

#: Dense 16-bit matrix throughput in TFLOP/s and memory bandwidth in TB/s by a part of the device's name, from the
#: makers' data sheets (GeForce: with 32-bit accumulation); the first that fits counts.
PEAKS = {
    "B200": (2250.0, 8.0),
    "GH200": (989.0, 4.0),
    "H200": (989.0, 4.8),
    "H100 PCIe": (756.0, 2.0),
    "H100": (989.0, 3.35),
    "A100": (312.0, 1.9),
    "L40S": (362.0, 0.86),
    "L40": (181.0, 0.86),
    "L4": (121.0, 0.3),
    "A6000": (155.0, 0.77),
    "RTX 6000 Ada": (364.0, 0.96),
    "A5000": (111.0, 0.77),
    "A10": (125.0, 0.6),
    "V100": (125.0, 0.9),
    "RTX 5090": (210.0, 1.8),
    "RTX 4090": (165.0, 1.0),
    "RTX 3090": (71.0, 0.94),
    "T4": (65.0, 0.3),
}
#: Assumed for a GPU that is only described by its memory, and the bandwidth of a machine's main memory.
_UNKNOWN, _CPU_BANDWIDTH = (71.0, 0.94), 0.02
_WIDTH, _TIMES = 640, 5  # of the products that a core is timed on


@dataclass(frozen=True)
class Device:
    """Memory in bytes, peak in FLOP/s, bandwidth in bytes/s, and where the figures come from."""

    name: str
    memory: float
    peak: float
    bandwidth: float
    here: bool  # the device is in this machine


def peak_of(name: str) -> tuple[float, float] | None:
    """Peak TFLOP/s and TB/s of a GPU by its name; None if the table does not hold it."""
    return next((speeds for part, speeds in PEAKS.items() if part in name), None)


@lru_cache(maxsize=1)
@one_thread()
def core_rate() -> float:
    """FLOP/s of matrix products in float32 on one core of this machine, measured in some 30 ms.

    By the seconds that this thread computes, so that other work on the machine does not count; the best of a few.
    """
    factor, seconds = torch.ones(_WIDTH, _WIDTH), []
    for _ in range(1 + _TIMES):
        begin = time.thread_time()
        torch.mm(factor, factor)
        seconds.append(time.thread_time() - begin)
    return 2.0 * _WIDTH**3 / max(min(seconds), 1e-9)


def machine_memory() -> float:
    """Main memory of this machine in bytes."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def device_of(name: str, gpu_gb: float | None, threads: int) -> Device:
    """The device a configuration names (``cpu``, ``cuda``, ``cuda:1``; ``auto``: all GPUs that are visible here).

    Args:
        gpu_gb: a GPU of so many gigabytes (2^30 bytes), whatever is here; None: the one that is here, else 24.
        threads: of a CPU; 0: all cores.
    """
    if name == "cpu" and gpu_gb is None:
        cores = threads or pools.cores()
        return Device(f"CPU, {cores} threads", machine_memory(), cores * core_rate(), _CPU_BANDWIDTH * 1e12, True)
    if gpu_gb is None and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.device("cuda" if name in ("cpu", "auto") else name))
        tera, bandwidth = peak_of(gpu.name) or _UNKNOWN
        # Layers on several GPUs work one after the other: their memory adds up, their speed does not.
        number = torch.cuda.device_count() if name == "auto" else 1
        label = gpu.name if number == 1 else f"{number} x {gpu.name}"
        return Device(label, float(gpu.total_memory) * number, tera * 1e12, bandwidth * 1e12, True)
    tera, bandwidth = _UNKNOWN
    size = gpu_gb or 24.0
    return Device(
        f"a GPU of {size:g} GB (assumed: as fast as an RTX 3090)", size * 2**30, tera * 1e12, bandwidth * 1e12, False
    )
