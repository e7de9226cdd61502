"""Whether client work can be done in forked processes on this machine, and in how many."""

from __future__ import annotations

import sys
import threading

from fcit.config import RunConfig


def problem(config: RunConfig) -> str | None:
    """Why ``federation.engine: fork`` cannot be used, in one sentence, or None."""
    import torch

    if not sys.platform.startswith("linux"):
        return f"federation.engine: 'fork' needs Linux, and this is {sys.platform}; use inline or ray"
    if config.backbone.device != "cpu":
        return (
            f"federation.engine: 'fork' cannot share a GPU, and backbone.device is {config.backbone.device!r}; use "
            "inline, or ray with ray.num_gpus"
        )
    if config.backbone.threads > 1:
        # Of OpenMP's threads only the one that forks is in the new process, which would wait for the others for ever.
        return (
            f"federation.engine: 'fork' has processes of one thread each, and backbone.threads is "
            f"{config.backbone.threads}; set backbone.threads=1, or use inline or ray"
        )
    if torch.cuda.is_initialized():
        return "federation.engine: 'fork' cannot be used in a process that has used a GPU; use inline or ray"
    return None


def workers(config: RunConfig) -> int:
    """Worker processes: by default as many as torch would have threads here, at most the orders of a round."""
    import torch

    return config.fork.workers or max(1, min(torch.get_num_threads(), config.federation.clients_per_round))


def preferred(config: RunConfig) -> bool:
    """Whether forking is safe and faster than working in this process, with the same bits.

    The same bits: ``backbone.threads`` is 1; where it is left to torch, this process would have several. Safe: Linux,
    no GPU, no other thread in this process (a notebook has some). Faster: torch may use several cores
    (``OMP_NUM_THREADS`` and the cores given to this process bound it), and a round has several orders.
    """
    same = config.backbone.threads == 1
    return same and problem(config) is None and threading.active_count() == 1 and workers(config) > 1
