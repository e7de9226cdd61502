"""A local training by a Hugging Face Trainer in place of the loop of :mod:`clients.worker.training`."""

from __future__ import annotations

from typing import Any

from clients.worker.rules import Local
from clients.worker.training import Outcome, learning_rates, presented
from fcit import registry, seeding
from fcit.config import RunConfig
from fcit.config.kinds import epochs_of
from fcit.federation.messages import TrainOrder
from fcit.fedopt.base import FedOpt
from fcit.integrations import hf
from fcit.methods.base import Method, Session


def train_by(
    name: str,
    config: RunConfig,
    method: Method,
    fedopt: FedOpt,
    order: TrainOrder,
    sessions: tuple[Session, Session],
    local: Local | None = None,
) -> Outcome:
    """Train the loaded slot with the trainer called ``name``: same records, order and number of steps as the loop.

    Raises:
        FCITError: as :func:`fcit.integrations.hf.train`.
    """
    training, session = config.training, sessions[0]
    epochs = epochs_of(training.epochs, order.tasks)
    indices = presented(order, len(session.examples), epochs, config.seed)
    steps = -(-len(indices) // training.batch_size)
    hooks: list[tuple[Any, Session]] = [(method, sessions[0]), (fedopt, sessions[1])]
    with (
        seeding.torch_seeded(config.seed, "training", order.stage, order.round, order.client, order.shard),
        session.adapters.training(order.frozen),
    ):
        if local is not None:
            local.prepare()
        for part, view in hooks:
            part.prepare(view)
        rates = list(learning_rates(training, steps))
        loss = hf.train(registry.resolve("trainer", name), name, session, indices, rates, training)
        extra, more = (part.finish(view) for part, view in hooks)
        if local is not None:
            local.finish()
    return Outcome(len(indices) // epochs, steps, loss, extra, more)
