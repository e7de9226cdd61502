"""A client's own models on records of its own shard that were kept out of training (``evaluation.personal``).

Nothing that is trained here is sent or kept: only scores leave.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.worker.answering import Answering
from clients.worker.shards import PersonalShards
from clients.worker.worker import Worker
from fcit import registry
from fcit.data.records import TestRecord
from fcit.errors import Refused
from fcit.federation.messages import EvaluateOrder, PersonalOrder, PersonalScores, TrainOrder
from fcit.io.cache import Bounded
from fcit.io.trees import Tensors
from fcit.methods.factory import Factory
from fcit.models.layout import Layout, is_projector

_NUMBERS = 4_000_000  # of identity features that are kept for the questions of one order


class _Questions:
    """The questions of one order as the only data set."""

    def __init__(self, records: Sequence[TestRecord], images: Path, longest: int | None) -> None:
        self._records, self._images, self._longest = records, images, longest

    def test(self, dataset: str) -> Sequence[TestRecord]:
        return self._records

    def question_images(self, dataset: str) -> Path:
        return self._images

    def max_new_tokens(self, dataset: str) -> int | None:
        return self._longest


def scores(worker: Worker, order: PersonalOrder) -> PersonalScores:
    """Score the run's model, the same after a round of local training, and an adapter trained here alone.

    ``global``: all subspaces, mixed by the method as for any question. ``tuned``: the same with the client's subspace,
    and the projector if it is trained, after one more round of the client's training on the rest of its shard. Where
    factors stay with clients (``factors: fedsa``) ``private`` stands for both: the subspaces with the client's own.
    ``alone``: plain LoRA tuning of a fresh adapter and the backbone's projector, ``order.alone`` rounds of it; not
    where the method's subspaces are more than LoRA factors.

    Raises:
        Refused: the data are a site's own, which are scored otherwise. TooFew: of too few records.
    """
    begin, data = time.perf_counter(), worker.data
    if not isinstance(data, PersonalShards):
        raise Refused("the order is to score models on kept-out records, but SITE.yaml has stream: site")
    records = data.own_questions(order.client, order.tasks)
    found: dict[str, float] = {}
    if records:
        worker.enough(order.client, order.tasks, "score", lambda count: min(count, len(records)))
        questions = _Questions(records, data.image_root, data.longest(order.tasks))
        rule = registry.resolve("scorer", data.scorer(order.tasks))

        def score(trial: Worker, asked: EvaluateOrder) -> float:
            return float(rule(_answers(trial, asked, questions), records).score)

        trial = _trial(worker)
        if worker.factors.per_client:
            found["private"] = score(trial, _asked(order, order.names, order.tensors, order.client))
        else:
            found["global"] = score(trial, _asked(order, order.names, order.tensors))
            if order.subspace:
                found["tuned"] = score(trial, _asked(order, order.names, _tuned(trial, order)))
        if worker.method.layout == Layout():
            plain = _plain(trial)
            found["alone"] = score(plain, _asked(order, ["alone"], _alone(plain, order), plain=True))
    seconds = time.perf_counter() - begin
    return PersonalScores(client=order.client, shard=order.shard, scores=found, count=len(records), seconds=seconds)


def _trial(worker: Worker) -> Worker:
    """The worker without traces: what it trains is whole, and nothing is remembered."""
    trial = copy.copy(worker)
    trial.thin, trial.memory = None, worker.memory.read_only()
    return trial


def _plain(trial: Worker) -> Worker:
    """A worker that trains by plain LoRA tuning whatever the run's method and optimiser are."""
    plain = copy.copy(trial)
    plain.config = trial.config.model_copy(update={"method": {"name": "finetune"}, "fedopt": {"name": "fedavg"}})
    plain.method = registry.resolve("method", "finetune")(plain.config)
    plain.fedopt = registry.resolve("fedopt", "fedavg")(plain.config)
    plain.factors = registry.resolve("factors", "separate")()
    return plain


def _tuned(trial: Worker, order: PersonalOrder) -> Tensors:
    """The order's tensors after a round of local training."""
    training = order.training()
    update, place = trial.trained(training), order.names.index(order.subspace)
    return order.tensors | _named(trial, place, {n: update.tensors[n] for n in training.trained})


def _named(trial: Worker, place: int, trained: Tensors) -> Tensors:
    """Trained tensors under the names of an evaluation: those of a subspace, and of a projector that all share."""
    shared = trial.config.adapter.projector == "shared"
    return {f"shared/{n}" if shared and is_projector(n) else f"subspace-{place}/{n}": t for n, t in trained.items()}


def _alone(plain: Worker, order: PersonalOrder) -> Tensors:
    """A fresh adapter after as many rounds of local training as ordered."""
    adapters = plain.adapters
    shapes = {name: tuple(p.shape) for name, p in adapters.trainable.items() if not is_projector(name)}
    tensors = {**adapters.base_projector(), **Factory(plain.config.seed, shapes)("alone")}
    names = set(tensors)
    for round_ in range(order.alone):
        training = TrainOrder(
            config=order.config,
            stage=order.stage,
            round=min(round_, order.round),
            client=order.client,
            shard=order.shard,
            tasks=order.tasks,
            subspace="alone",
            tensors=tensors,
            run=order.run,
        )
        tensors = tensors | plain.trained(training).tensors
    return _named(plain, 0, {name: tensor for name, tensor in tensors.items() if name in names})


def _asked(
    order: PersonalOrder, names: list[str], tensors: Tensors, client: int | None = None, plain: bool = False
) -> EvaluateOrder:
    """The order to answer with these subspaces, by the method's knowledge unless it is ``plain``.

    Args:
        client: answers with factors of its own.
    """
    return EvaluateOrder(
        config=order.config,
        dataset="own",
        first=0,
        last=0,
        task=order.task,
        names=names,
        knowledge={} if plain else order.knowledge,
        tensors=tensors,
        client=client,
        memory=order.memory,
    )


def _answers(trial: Worker, asked: EvaluateOrder, questions: _Questions) -> list[str]:
    model, keep = (trial.backbone, trial.adapters), Bounded(_NUMBERS, np.size)
    answering = Answering(trial.config, model, trial.method, questions, trial.judge, keep)
    knowledge = {**asked.knowledge, **({"task": asked.task} if trial.method.needs_task_at_inference else {})}
    texts, _ = answering.answers(asked, knowledge, asked.dataset, slice(None), trial.own(asked))
    return texts
