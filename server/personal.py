"""After a stage: clients that have trained it score models on records of their own shards (``evaluation.personal``).

Nothing of it enters the accuracy matrix: it is about other questions, and of a sample of the clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import Message

from fcit import seeding
from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import CodecError, RunError
from fcit.evaluation import personal
from fcit.evaluation.scorers import LARGEST
from fcit.federation import codec
from fcit.federation.messages import PersonalOrder, PersonalScores, is_learnt
from fcit.methods.base import ServerState
from server.checkpoint import Progress
from server.courier import NOBODY, Courier
from server.gather import lost_memory
from server.orders import Orders
from server.participants import Slot, slot_of
from server.validation import short


class PersonalEvaluation:
    """Has sampled clients score the run's model and their own, once for each evaluated stage."""

    def __init__(
        self, config: RunConfig, stream: Stream, orders: Orders, courier: Courier, say: Callable[..., None]
    ) -> None:
        self.config, self.stream, self.orders, self.courier, self.say = config, stream, orders, courier, say

    def stage(self, state: ServerState, progress: Progress) -> None:
        """Ask the clients of the stage at hand; a deployment goes on without those that do not answer.

        One that has lost what it remembers is left out, too: its own models are gone. It starts afresh with its next
        order.

        Raises:
            RunError: in a simulation, a client failed otherwise or answered nonsense.
            StopRequested: asked to stop.
        """
        settings, method, stage = self.config.evaluation.personal, self.orders.method, progress.stage
        done = settings is None or str(stage) in progress.personal or not self.orders.evaluates(stage)
        if done or method.pooled or not method.trains:
            return
        orders = {order.client: order for order in self._orders(state, progress)}
        rows: dict[str, dict[str, float]] = {}
        nodes = [(self.courier.node(client), order) for client, order in orders.items()]
        for reply in self.courier.send("query.personal", nodes, f"{stage}.personal"):
            client = self.courier.client(reply.metadata.src_node_id)
            scores = self._read(reply, orders.get(-1 if client is None else client))
            if isinstance(scores, PersonalScores):
                rows[str(scores.client)] = scores.scores
                progress.personal_seconds = round(progress.personal_seconds + scores.seconds, 4)
                continue
            lost = client is not None and client in orders and lost_memory(reply)
            if client is not None and lost:
                self.say("memory-lost", client=client, stage=stage, **progress.forget(client))
            if lost or self.courier.deployed:
                self.say("personal-failed", client=client, stage=stage, reason=short(scores))
            else:
                raise RunError(f"evaluation.personal: client {client}: {scores}")
        progress.personal[str(stage)] = {client: rows[client] for client in sorted(rows, key=int) if rows[client]}
        self.say("personal", stage=stage, **personal.summary(progress.personal, [str(stage)]))

    def _orders(self, state: ServerState, progress: Progress) -> Iterator[PersonalOrder]:
        """Orders to the sampled clients: the whole model, and what a round of local training needs beside."""
        names, knowledge, model = self.orders.mixture(state, progress)
        settings = self.config.evaluation.personal
        for slot in self._sampled(state, progress):
            task = f"task-{slot.tasks[0]}" if self.orders.method.needs_task_at_inference else ""
            order = PersonalOrder(
                config=self.orders.text,
                stage=progress.stage,
                round=self.config.federation.rounds - 1,
                client=slot.client,
                shard=slot.shard,
                tasks=list(slot.tasks),
                subspace="",
                task=task,
                names=names,
                knowledge=knowledge,
                tensors=model,
                alone=(settings and settings.alone) or self.config.federation.rounds,
                run=self.orders.run,
            )
            order.memory = progress.memories.get(str(slot.client), "")
            if self._tuned(state, progress, slot):
                training = self.orders.train(state, progress, slot)
                beside = {n: tensor for n, tensor in training.tensors.items() if not is_learnt(n)}
                order.subspace, order.tensors = state.assigned[slot.pair], model | beside
                order.constants = training.constants
                order.frozen, order.brief = training.frozen, training.brief
            yield order

    def _tuned(self, state: ServerState, progress: Progress, slot: Slot) -> bool:
        """Whether the client goes on training what it has trained.

        Rules that begin a round with fresh factors beside the subspace (``flora``) would have it twice.
        """
        return self.orders.method.tunable(state, slot.pair, progress.stage) and not self.orders.factors.adds_itself

    def _sampled(self, state: ServerState, progress: Progress) -> list[Slot]:
        """Clients that have trained a task of the stage and are there, drawn from (seed, stage)."""
        settings, seed, stage = self.config.evaluation.personal, self.config.seed, progress.stage
        trained, contributed = dict[int, Slot](), set(progress.contributed)
        for client in sorted({client for client, _ in state.assigned}):
            for tasks in dict.fromkeys(self.stream.slots(stage)):
                slot = slot_of(seed, stage, client, tasks)
                if slot.pair in state.assigned and f"{client}/{slot.shard}" in contributed:
                    trained.setdefault(client, slot)
        there = [slot for client, slot in trained.items() if self.courier.node(client) != NOBODY]
        count = min(len(there), settings.clients if settings else 0)
        drawn = seeding.generator(seed, "personal", stage).permutation(len(there))[:count]
        return [there[int(place)] for place in sorted(drawn)]

    def _read(self, reply: Message, order: PersonalOrder | None) -> PersonalScores | str:
        """The scores in a reply, or why they are rejected."""
        if reply.has_error():
            return str(reply.error.reason)
        try:
            scores = codec.decode(reply.content, PersonalScores, reply=True)
        except CodecError as error:
            return str(error)
        if order is None or (scores.client, scores.shard) != (order.client, order.shard):
            return f"answered for client {scores.client}, shard {scores.shard[:40]!r}"
        return reject_reason(scores) or scores


def reject_reason(scores: PersonalScores) -> str | None:
    """Why a client's scores are rejected, or None; they end in tables only."""
    if bool(scores.scores) != bool(scores.count) or not 0 <= scores.count < 1e6:
        return f"claims {scores.count} questions and {len(scores.scores)} scores"
    if not set(scores.scores) <= set(personal.MODELS):
        return f"scores must be of {', '.join(personal.MODELS)}"
    for name, score in scores.scores.items():
        if not (math.isfinite(score) and 0 <= score <= LARGEST * (1 + 1e-9)):
            return f"the score of {name} is {score}, not between 0 and {LARGEST:.0f}"
    return None if 0 <= scores.seconds < math.inf else f"claims {scores.seconds} seconds"


def results(progress: Progress) -> dict[str, Any]:
    """The entry ``personal`` of ``results.json``; empty without."""
    return {"personal": personal.results(progress.personal)} if progress.personal else {}
