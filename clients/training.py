"""The local training loop: the only one, for every method and engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fcit import config as configuration
from fcit import seeding
from fcit.config import RunConfig
from fcit.errors import FCITError
from fcit.federation.records import TrainOrder
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Method, Session


@dataclass(frozen=True)
class Outcome:
    """What a local epoch came to."""

    examples: int
    steps: int
    loss: float
    extra: dict[str, np.ndarray]  # the method's, for the server
    fedopt: dict[str, np.ndarray]  # the federated optimiser's


def _order(order: TrainOrder, count: int, epochs: int, seed: int) -> list[int]:
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


def learning_rates(training: configuration.Training, steps: int) -> Iterator[float]:
    """Linear warm-up, then cosine to zero, afresh in every local epoch run (as FCIT trains)."""
    warm = math.ceil(training.warmup_ratio * steps)
    for step in range(steps):
        if step < warm:
            yield training.lr * (step + 1) / warm
        elif training.schedule == "constant":
            yield training.lr
        else:
            yield training.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def backward(
    sessions: tuple[Session, Session], batch: list[int], loss_of: Callable[[list[int]], Any],
    micro_batch: int | None = None,
) -> float:  # fmt: skip
    """Gradients of one batch's loss, added to the parameters'; returns the loss.

    With ``micro_batch`` only so many records are passed through the model at a time. The loss of part i
    counts with n_i / n, its share of the batch's answer tokens, so that a mean over answer tokens is that
    of the whole batch, and a term of the parameters alone, being in every part's loss, counts once:

        L = sum_i (n_i / n) (CE_i + R) = CE + R.

    What a method averages over records (the pull of ``l2p``) or draws for each call (``replay``) is
    averaged or drawn within each part instead, and dropout falls differently.

    Args:
        loss_of: the method's loss of records of the shard, by their indices.
    """
    for view in sessions:
        view.batch = batch
    if micro_batch is None or micro_batch >= len(batch):
        loss = loss_of(batch)
        loss.backward()
        return float(loss.detach())
    tokens = [len(sessions[0].examples[i].answer) for i in batch]
    total = 0.0
    for start in range(0, len(batch), micro_batch):
        part = slice(start, start + micro_batch)
        for view in sessions:
            view.batch = batch[part]
        loss = loss_of(batch[part]) * (sum(tokens[part]) / sum(tokens))
        loss.backward()
        total += float(loss.detach())
    for view in sessions:
        view.batch = batch
    return total


def train(
    config: RunConfig, method: Method, fedopt: FedOpt, order: TrainOrder, sessions: tuple[Session, Session],
    micro_batch: int | None = None,
) -> Outcome:  # fmt: skip
    """Train the loaded slot: fresh AdamW, fresh schedule, seeded by (seed, stage, round, client).

    Args:
        sessions: the method's view of this training and the federated optimiser's.
        micro_batch: records passed through the model at a time; None: the whole batch.

    Raises:
        FCITError: the loss is not finite.
    """
    training, session = config.training, sessions[0]
    examples = session.examples
    indices = _order(order, len(examples), training.epochs, config.seed)
    batches = [indices[i : i + training.batch_size] for i in range(0, len(indices), training.batch_size)]
    needed = sorted(set(indices))
    features = session.backbone.vision_features(session.image_root, [examples[i].image for i in needed])
    row = {index: position for position, index in enumerate(needed)}
    losses = []

    def loss_of(chosen: list[int]) -> Any:
        return method.loss(session, [examples[i] for i in chosen], features[[row[i] for i in chosen]])

    with (
        seeding.torch_seeded(config.seed, "training", order.stage, order.round, order.client, order.shard),
        session.adapters.training(order.frozen) as parameters,
    ):
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
        parts: list[tuple[Any, Session]] = [(method, sessions[0]), (fedopt, sessions[1])]
        for part, view in parts:
            part.prepare(view)
        for batch, lr in zip(batches, learning_rates(training, len(batches)), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for view in sessions:
                view.lr = lr
            optimizer.zero_grad(set_to_none=True)
            losses.append(backward(sessions, batch, loss_of, micro_batch))
            for part, view in parts:
                part.on_gradients(view)
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.step()
            for part, view in parts:
                part.on_step(view)
        extra, more = (part.finish(view) for part, view in parts)
    mean = float(np.mean(losses))
    if not math.isfinite(mean):
        raise FCITError(f"client {order.client}: the training loss is {mean}; lower training.lr ({training.lr})")
    return Outcome(len(indices) // training.epochs, len(batches), mean, extra, more)
