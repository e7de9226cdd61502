"""The participations of a round: clients and the shards they train on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.federation.sampling import sample
from fcit.methods.base import Method, Pair

POOL = -1  # the participant of pooled references


@dataclass(frozen=True)
class Slot:
    """One participation in a round: a client, the name of its shard, the tasks whose records are in it."""

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


def slot_of(seed: int, stage: int, client: int, tasks: tuple[int, ...]) -> Slot:
    """A client's participation with the records of these tasks.

    Where only the client knows its task, its records of a stage are one shard, named by the stage.
    """
    return Slot(client, shard_id(seed, client, *(tasks or (stage,))), tasks)


def slots_of_round(
    config: RunConfig,
    stream: Stream,
    method: type[Method] | Method,
    stage: int,
    round_: int,
    drawn: list[int] | None = None,
    extra: bool = False,
) -> list[Slot]:
    """The participations of a round in slot order.

    Pooled references have one participant; its budget is the number of records that the sampled clients would
    have trained on.

    Args:
        drawn: the clients, if they do not follow from the seed alone: any number, who go through the slots in turn.
        extra: whether it is one of the method's extra rounds (:meth:`fcit.methods.base.Method.extra_rounds`), in which
            a client's records are of several stages: one shard, named by the stage that has come.
    """
    clients = sample(config.federation, config.seed, stage, round_) if drawn is None else drawn
    tasks_of = stream.slots(stage)
    slots = [
        slot_of(config.seed, stage, client, tasks_of[place % len(tasks_of)]) for place, client in enumerate(clients)
    ]
    if extra:
        return [Slot(slot.client, f"extra-{stage}", slot.tasks) for slot in slots]
    if not method.pooled:
        return slots
    sizes: dict[int, int] = {}
    for slot in slots:
        task = slot.tasks[0]
        sizes[task] = sizes.get(task, 0) + stream.most_records(slot.client, slot.tasks)
    if method.pooled == "task":
        return [Slot(POOL, f"task-{t}", (t,), n) for t, n in sorted(sizes.items())]
    every = tuple(sorted({t for n in range(stream.stage_count) for tasks in stream.slots(n) for t in tasks}))
    return [Slot(POOL, "all", every, sum(sizes.values()))]
