"""Splits a task's records over clients by size: quantity skew, Dirichlet(beta)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from fcit import seeding
from fcit.errors import ConfigError

REDRAWS = 1000


def dirichlet_sizes(
    total: int, clients: int, beta: float, rng: np.random.Generator, *, min_size: int = 1, reserve: int = 0
) -> list[int]:
    """How many of ``total`` records each client gets.

    Every client first gets ``reserve`` records; the rest is cut by shares drawn from
    Dirichlet(beta, ..., beta), rounded down (what is left over is dropped, as in the reference
    partitioner). The whole draw is repeated until each client has ``min_size``.

    Raises:
        ConfigError: ``reserve`` needs more than there is, or 1,000 draws did not reach ``min_size``.
    """
    rest = total - reserve * clients
    if rest < 0:
        raise ConfigError(
            f"partition.reserve: {reserve} records for each of {clients} clients are more than the {total} there are"
        )
    for _ in range(REDRAWS):
        shares = rng.dirichlet([beta] * clients)
        sizes = reserve + np.floor(shares * rest).astype(int)
        if sizes.min() >= min_size:
            return [int(size) for size in sizes]
    raise ConfigError(
        f"partition.min_size: no draw in {REDRAWS} gave each of {clients} clients {min_size} of {total} records "
        f"at beta {beta}; lower min_size, raise beta or use partition.reserve"
    )


def partition(
    total: int, clients: int, beta: float, seed: int, task: int, *, min_size: int = 1, reserve: int = 0
) -> list[list[int]]:
    """Record indices of each client: shuffled once, then cut into consecutive pieces."""
    rng = seeding.generator(seed, "partition", task, str(beta), clients)
    sizes = dirichlet_sizes(total, clients, beta, rng, min_size=min_size, reserve=reserve)
    order = rng.permutation(total)
    ends = np.cumsum(sizes)
    return [order[end - size : end].tolist() for size, end in zip(sizes, ends, strict=True)]


def kept(total: int, most: int, seed: int, dataset: str) -> list[int]:
    """Which ``most`` of a data set's ``total`` records are used (``data.max_records``), in the file's order.

    They are the first of one shuffle, the same for every method; fewer are always some of the more.
    """
    return sorted(seeding.generator(seed, "max-records", dataset).permutation(total)[:most].tolist())


def write_clients(folder: Path, rows: list[dict[str, object]], shares: list[list[int]]) -> None:
    """Write ``client_<i>.json`` files of one task, in the official layout, all or nothing."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for client, share in enumerate(shares):
        text = json.dumps([rows[i] for i in share], indent=1)
        (staging / f"client_{client}.json").write_text(text, encoding="utf-8")
    try:
        staging.rename(folder)
    except OSError:  # another process was first; its files are the same
        if not folder.is_dir():
            raise
        shutil.rmtree(staging)


def fingerprint(*parts: object) -> str:
    """Short name for generated partitions of the same origin."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
