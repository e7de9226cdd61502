"""Who owns randomness: every draw comes from (seed, purpose, stage, round, client).

:func:`torch_seeded` is the only place that sets the global generators (dropout needs them);
it puts them back afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator

import numpy as np


def _entropy(seed: int, owner: tuple[int | str, ...]) -> list[int]:
    text = "/".join(str(part) for part in owner)
    return [seed, *np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype=np.uint32).tolist()]


def generator(seed: int, *owner: int | str) -> np.random.Generator:
    """A generator that belongs to ``owner``, e.g. ``generator(0, "sampling", stage, round)``."""
    return np.random.default_rng(_entropy(seed, owner))


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Leaves torch's global generators as they were, for library calls that draw from them.

    Of GPUs only where this process uses them: a run on a CPU leaves those of its machine alone.
    """
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus, device_type="cuda"):
        yield


def bookmark() -> Callable[[], None]:
    """Remember the states of the global generators; calling the result restores them.

    For a computation that is aborted and repeated as if nothing had been drawn.
    """
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)

    return restore


@contextlib.contextmanager
def torch_seeded(seed: int, *owner: int | str) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch for the body; restore them after."""
    import torch

    words = generator(seed, *owner).integers(2**32, size=3)
    before = random.getstate(), np.random.get_state()
    with untouched():
        try:
            random.seed(int(words[0]))
            np.random.seed(int(words[1]))
            torch.manual_seed(int(words[2]))
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
