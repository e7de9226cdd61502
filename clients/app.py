"""The Flower ClientApp: decodes an order, lets the worker do it, encodes the reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.site import gate
from clients.worker import personal, secure
from clients.worker.worker import Worker, worker
from fcit.federation import codec
from fcit.federation.messages import (
    DescribeOrder,
    EvaluateOrder,
    KeysOrder,
    MaskOrder,
    Name,
    PersonalOrder,
    ProbeOrder,
    ScoreOrder,
    ShareOrder,
    TrainOrder,
    UnmaskOrder,
)

app = ClientApp()


def _reply(message: Message, context: Context, kind: type, work: Callable[[Worker, Any], Any]) -> Message:
    """At a site, whose node configuration names its SITE.yaml, through its gate; in a simulation as ordered."""
    if "site" in context.node_config:
        return gate.reply(context, message, lambda opened: _at_site(message, opened, kind, work))
    order: Any = codec.decode(message.content, kind, writable=True)
    # A node's own setting comes before the one that a simulation has for all nodes.
    memory = context.node_config.get("client-memory") or context.run_config.get("client-memory") or ""
    executing = worker(order.config, str(memory))
    secure.between(executing, order)
    try:
        record = work(executing, order)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"GPU: {str(error).splitlines()[0]}") from None
    return Message(codec.encode(record, executing.wire), reply_to=message)


def _at_site(message: Message, opened: gate.Gate, kind: type, work: Callable[[Worker, Any], Any]) -> tuple[Any, str]:
    order: Any = codec.decode(message.content, kind, writable=True)
    executing = worker(opened.admit(order), str(opened.memory(order.run)), opened.terms, opened.own)
    secure.between(executing, order)
    return work(executing, order), executing.wire


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train a subspace on one of this client's shards."""
    return _reply(message, context, TrainOrder, Worker.train)


@app.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Secure aggregation, phase 1: public keys."""
    return _reply(message, context, KeysOrder, secure.keys)


@app.query("shares")
def shares(message: Message, context: Context) -> Message:
    """Secure aggregation, phase 2: shares of this client's secrets for others."""
    return _reply(message, context, ShareOrder, secure.share)


@app.train("masked")
def train_masked(message: Message, context: Context) -> Message:
    """Secure aggregation, phase 3: train, and send the update masked."""
    return _reply(message, context, MaskOrder, secure.train)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Secure aggregation, phase 4: open shares of others' secrets."""
    return _reply(message, context, UnmaskOrder, secure.unmask)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer a test set with the broadcast subspaces."""
    return _reply(message, context, EvaluateOrder, Worker.evaluate)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Score a site's own test splits with the broadcast subspaces."""
    return _reply(message, context, ScoreOrder, Worker.score)


@app.query("personal")
def score_own(message: Message, context: Context) -> Message:
    """Score models on records of this client's shard that are kept out of training."""
    return _reply(message, context, PersonalOrder, personal.scores)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Additive statistics of a shard, before its first training."""
    return _reply(message, context, DescribeOrder, Worker.describe)


@app.query("probe")
def probe(message: Message, context: Context) -> Message:
    """Shapes of the trainable tensors of the configured backbone."""
    return _reply(message, context, ProbeOrder, Worker.probe)


@app.query("whoami")
def whoami(message: Message, context: Context) -> Message:
    """Which client this node is; the server asks only where operators gave no names, as in a simulation."""
    if "site" in context.node_config:
        return gate.reply(context, message, lambda opened: (Name(client=int(opened.site.name)), "float32"))
    return Message(codec.encode(Name(client=int(context.node_config["partition-id"]))), reply_to=message)
