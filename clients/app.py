"""The Flower ClientApp: decodes an order, lets the worker do it, encodes the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.site import gate
from clients.worker.worker import Worker, worker
from fcit.federation import codec
from fcit.federation.messages import DescribeOrder, EvaluateOrder, Name, ProbeOrder, ScoreOrder, TrainOrder

app = ClientApp()


def _answer(message: Message, context: Context, kind: type, work: Callable[[Worker, Any], Any]) -> Message:
    """At a site, whose node configuration names its SITE.yaml, through its gate; else as ordered."""
    if "site" in context.node_config:
        return gate.answer(context, message, lambda door: _at_site(message, door, kind, work))
    order: Any = codec.decode(message.content, kind)
    # A node's own setting comes before what a simulation says for everybody.
    memory = context.node_config.get("client-memory") or context.run_config.get("client-memory") or ""
    mine = worker(order.config, str(memory))
    try:
        answer = work(mine, order)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"GPU: {str(error).splitlines()[0]}") from None
    return Message(codec.encode(answer, mine.config.federation.wire), reply_to=message)


def _at_site(message: Message, door: gate.Gate, kind: type, work: Callable[[Worker, Any], Any]) -> tuple[Any, str]:
    order: Any = codec.decode(message.content, kind)
    mine = worker(door.admit(order), str(door.memory(order.run)), door.terms, door.own)
    return work(mine, order), mine.config.federation.wire


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train a subspace on one of this client's shards."""
    return _answer(message, context, TrainOrder, Worker.train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer a test set with the broadcast subspaces."""
    return _answer(message, context, EvaluateOrder, Worker.evaluate)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Score a site's own test splits with the broadcast subspaces."""
    return _answer(message, context, ScoreOrder, Worker.score)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Additive statistics of a shard, before its first training."""
    return _answer(message, context, DescribeOrder, Worker.describe)


@app.query("probe")
def probe(message: Message, context: Context) -> Message:
    """Shapes of the trainable tensors of the configured backbone."""
    return _answer(message, context, ProbeOrder, Worker.probe)


@app.query("whoami")
def whoami(message: Message, context: Context) -> Message:
    """Which client this node is; the server asks only where operators gave no names, as in a simulation."""
    if "site" in context.node_config:
        return gate.answer(context, message, lambda door: (Name(client=int(door.site.name)), "float32"))
    return Message(codec.encode(Name(client=int(context.node_config["partition-id"]))), reply_to=message)
