"""The local training loop: the only one, for every method and engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from clients.worker.loss_scale import LossScale
from clients.worker.micro_batches import MicroBatches, backward, parts
from clients.worker.private import Private
from clients.worker.rules import Local
from fcit import config as configuration
from fcit import seeding
from fcit.config import RunConfig
from fcit.config.kinds import epochs_of
from fcit.data.collate import Encoded, images_of
from fcit.errors import FCITError
from fcit.federation.messages import TrainOrder
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Method, Session, objective
from fcit.models.schedules import trainer_multipliers


@dataclass(frozen=True)
class Outcome:
    """Result of a local training."""

    examples: int
    steps: int
    loss: float
    extra: dict[str, np.ndarray]  # the method's, for the server
    fedopt: dict[str, np.ndarray]  # the federated optimiser's
    overflowed: int = 0  # steps left out because gradients overflowed in float16


def presented(order: TrainOrder, count: int, epochs: int, seed: int) -> list[int]:
    """Record indices in the order they are presented."""
    if order.budget is None:
        rng = seeding.generator(seed, "batches", order.stage, order.round, order.client, order.shard)
        return [int(i) for _ in range(epochs) for i in rng.permutation(count)]
    # Pooled references read on in an endless seeded sequence of permutations.
    wanted = order.budget * epochs
    first, skip = divmod(order.offset * epochs, count)
    indices: list[int] = []
    lap = first
    while len(indices) < skip + wanted:
        indices += [int(i) for i in seeding.generator(seed, "pooled", order.shard, lap).permutation(count)]
        lap += 1
    return indices[skip : skip + wanted]


def _following(
    examples: Sequence[Encoded], batches: list[list[int]], chosen: list[int], micro_batch: int | None
) -> list[int]:
    """The records after those ``chosen``, which are a part of the first batch; none after the last."""
    coming = [part for batch in batches[:2] for part in parts(examples, batch, micro_batch)]
    after = coming.index(chosen) + 1 if chosen in coming else len(coming)
    return coming[after] if after < len(coming) else []


def learning_rates(training: configuration.Training, steps: int) -> Iterator[float]:
    """The rate of each step, afresh in every local epoch run.

    - ``trainer``: the published multipliers, see :func:`fcit.models.schedules.trainer_multipliers`: the first step has
      rate 0, and a run of one step leaves everything as it was.
    - ``cosine`` (ours): linear warm-up whose first step moves already, then cosine to zero.
    - ``constant`` (ours): the same warm-up, then ``lr``.
    """
    if training.schedule == "trainer":
        yield from (training.lr * multiplier for multiplier in trainer_multipliers(training.warmup_ratio, steps))
        return
    warm = math.ceil(training.warmup_ratio * steps)
    for step in range(steps):
        if step < warm:
            yield training.lr * (step + 1) / warm
        elif training.schedule == "constant":
            yield training.lr
        else:
            yield training.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    config: RunConfig,
    method: Method,
    fedopt: FedOpt,
    order: TrainOrder,
    sessions: tuple[Session, Session],
    micro: MicroBatches,
    private: Private | None = None,
    local: Local | None = None,
) -> Outcome:
    """Train the loaded slot: fresh AdamW, fresh schedule, seeded by (seed, stage, round, client).

    Image features come onto the device a micro-batch at a time: a client with thousands of images has
    more of them than a GPU holds.

    Args:
        sessions: the method's view of this training and the federated optimiser's.
        micro: how many records pass through the model at a time.
        local: the part of ``factors:`` in it.
        private: with ``privacy.record_dp``, the client's DP-SGD: its batches, its gradients in place of clipped means.

    Raises:
        FCITError: the loss is not finite, or memory runs out with the smallest micro-batch.
    """
    training, session = config.training, sessions[0]
    examples = session.examples
    if private is None:
        epochs = epochs_of(training.epochs, order.tasks)
        indices = presented(order, len(examples), epochs, config.seed)
        batches = [indices[i : i + training.batch_size] for i in range(0, len(indices), training.batch_size)]
        count, seed = len(indices) // epochs, config.seed
    else:
        batches, count, seed = private.batches(), private.records, private.seed
    needed = sorted({i for batch in batches for i in batch})
    pictures = session.backbone.images(session.image_root, images_of([examples[i] for i in needed]))
    ends = np.cumsum([len(examples[i].images) for i in needed])
    rows = {i: range(end - len(examples[i].images), end) for i, end in zip(needed, ends.tolist(), strict=True)}
    losses: list[float] = []

    def rows_of(chosen: list[int]) -> list[int]:
        return [row for i in chosen for row in rows[i]]

    def loss_of(chosen: list[int]) -> Any:
        features = pictures.batch(rows_of(chosen))
        if pictures.reads_ahead and private is None:
            pictures.ahead(rows_of(_following(examples, batches[len(losses) :], chosen, micro.size)))
        batch = [examples[i] for i in chosen]
        # A penalty is no record's: private steps add its gradient to what they have clipped.
        if private is not None:
            return method.loss(session, batch, features)
        return objective(method, session, batch, features) + (local.penalty() if local else 0.0)

    with (
        seeding.torch_seeded(seed, "training", order.stage, order.round, order.client, order.shard),
        session.adapters.training(order.frozen) as parameters,
    ):
        scale = LossScale(session.backbone.device, session.backbone.dtype if private is None else torch.float32)
        compute = partial(backward, scaled=scale.up) if private is None else partial(private.backward, parameters)
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
        hooks: list[tuple[Any, Session]] = [(method, sessions[0]), (fedopt, sessions[1])]
        if local is not None:
            local.prepare()
        for part, view in hooks:
            part.prepare(view)
        for batch, lr in zip(batches, learning_rates(training, len(batches)), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for view in sessions:
                view.lr = lr
            optimizer.zero_grad(set_to_none=True)
            losses.append(micro.backward(sessions, batch, loss_of, parameters, compute))
            if private is not None:
                private.add(method.penalty(session) + (local.penalty() if local else 0.0))
            scale.down(optimizer)
            for part, view in hooks:
                part.on_gradients(view)
            if training.max_grad_norm is not None and private is None:
                torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            scale.step(optimizer)
            for part, view in reversed(hooks):  # the method's last: it may confine the whole step
                part.on_step(view)
        extra, more = (part.finish(view) for part, view in hooks)
        if local is not None:
            local.finish()
    mean = float(np.mean([loss for loss, batch in zip(losses, batches, strict=True) if batch] or [0.0]))
    if not math.isfinite(mean):
        raise FCITError(f"client {order.client}: the training loss is {mean}; lower training.lr ({training.lr})")
    return Outcome(count, len(batches), mean, extra, more, scale.skipped)


def measure(method: Method, order: TrainOrder, session: Session) -> dict[str, np.ndarray]:
    """What the method measures on the shard with the loaded slot, seeded as a training; nothing is trained."""
    with (
        seeding.torch_seeded(session.seed, "measuring", order.stage, order.client, order.shard),
        session.adapters.training(order.frozen),
    ):
        return method.measure(session)
