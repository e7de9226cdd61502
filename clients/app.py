"""The Flower ClientApp: decodes an order, lets the worker do it, encodes the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.worker import Worker, worker
from fcit.federation import codec
from fcit.federation.records import DescribeOrder, EvaluateOrder, ProbeOrder, TrainOrder

app = ClientApp()


def _answer(message: Message, kind: type, work: Callable[[Worker, Any], Any]) -> Message:
    order: Any = codec.decode(message.content, kind)
    mine = worker(order.config)
    try:
        answer = work(mine, order)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"GPU: {str(error).splitlines()[0]}") from None
    return Message(codec.encode(answer, mine.config.federation.wire), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train a subspace on one of this client's shards."""
    return _answer(message, TrainOrder, Worker.train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer a test set with the broadcast subspaces."""
    return _answer(message, EvaluateOrder, Worker.evaluate)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Additive statistics of a shard, before its first training."""
    return _answer(message, DescribeOrder, Worker.describe)


@app.query("probe")
def probe(message: Message, context: Context) -> Message:
    """Shapes of the trainable tensors of the configured backbone."""
    return _answer(message, ProbeOrder, Worker.probe)
