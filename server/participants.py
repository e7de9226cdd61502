"""Who trains what in a round."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.federation.sampling import sample
from fcit.methods.base import Method, Pair

POOL = -1  # the participant of pooled references


@dataclass(frozen=True)
class Slot:
    """One participation in a round: a client, what it trains on, how the record set is called."""

    client: int
    shard: str
    tasks: tuple[int, ...]
    budget: int | None = None

    @property
    def pair(self) -> Pair:
        return (self.client, self.shard)


def shard_id(seed: int, client: int, task: int) -> str:
    """Opaque name of one client's records of one task; says nothing about the task."""
    return hashlib.sha256(f"{seed}/{client}/{task}".encode()).hexdigest()[:12]


def slots_of_round(
    config: RunConfig, benchmark: Benchmark, method: type[Method] | Method, stage: int, round_: int
) -> list[Slot]:
    """The participations of a round in slot order.

    Pooled references have one participant; its budget is what the sampled clients would have shown.
    """
    clients = sample(config.federation, config.seed, stage, round_)
    if config.stream == "site":
        # A stage is all the server knows: what a client then trains on is one shard, whichever task it is.
        return [Slot(c, shard_id(config.seed, c, stage), ()) for c in clients]
    tasks = benchmark.stages[stage]
    slots = [Slot(c, shard_id(config.seed, c, t), (t,)) for c, t in zip(clients, tasks, strict=True)]
    if not method.pooled:
        return slots
    sizes: dict[int, int] = {}
    for slot in slots:
        task = slot.tasks[0]
        sizes[task] = sizes.get(task, 0) + len(benchmark.shard(slot.client, task))
    if method.pooled == "task":
        return [Slot(POOL, f"task-{t}", (t,), n) for t, n in sorted(sizes.items())]
    every = tuple(sorted({t for stage_ in benchmark.stages for t in stage_}))
    return [Slot(POOL, "all", every, sum(sizes.values()))]
