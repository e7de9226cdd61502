"""Clients that do not play by the rules, on the inline engine: each fault happens once, in a known round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from clients.app import app
from fcit import config as configuration
from fcit.federation import codec
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.messages import ClientUpdate, DescribeOrder, Description, TrainOrder
from fcit.federation.sampling import sample
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server.app import run as serve

Place = tuple[int, int, int]  # stage, round, client
#: What a hostile client makes of its honest answer: another record, or a message's content.
Lie = Callable[[Any], Any]


class Absent(Exception):
    """The client is not there: what an honest run without it looks like."""


def claims(**values: Any) -> Lie:
    """The honest answer with other values."""
    return lambda answer: dataclasses.replace(answer, **values)


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Lie:
    """The honest answer with other tensors."""
    return lambda answer: dataclasses.replace(answer, tensors=change(dict(answer.tensors)))


def one(change: Callable[[np.ndarray], np.ndarray]) -> Lie:
    """The honest answer with its first tensor changed."""
    return tensors(lambda sent: {n: change(t) if n == min(sent) else t for n, t in sent.items()})


def counts(examples: int) -> Lie:
    """So many records, with the steps that fit them."""
    return claims(examples=examples, steps=math.ceil(examples / 16))


def head(text: str) -> Lie:
    """Tensors under another head."""
    return lambda answer: RecordDict(
        {"head": ConfigRecord({"json": text}), "tensors": codec.encode(answer).array_records["tensors"]}
    )


def trained(order: TrainOrder) -> ClientUpdate:
    """A plausible update to an order, a function of the order alone, made without a model: honest and quick."""
    rng = np.random.default_rng((order.stage, order.round, order.client))
    moved = {n: t + rng.uniform(-1e-3, 1e-3, t.shape).astype(np.float32) for n, t in order.trained.items()}
    return ClientUpdate(
        **order.answered,
        examples=1,
        steps=1,
        loss=0.5,
        seconds=0.1,
        tensors=moved,
    )


class Hostile:
    """The ClientApp without the training; at known places it lies, everywhere else it is honest.

    Args:
        lies: by message type and place. Orders to describe know no round: theirs is 0.
        absent: the same clients are not there instead.
    """

    def __init__(self, lies: dict[tuple[str, Place], Lie], absent: bool) -> None:
        self.lies, self.absent = lies, absent

    def __call__(self, message: Message, context: Any) -> Message:
        kind = message.metadata.message_type
        order: Any = None
        if kind == "train":
            order = codec.decode(message.content, TrainOrder)
        elif kind == "query.describe":
            order = codec.decode(message.content, DescribeOrder)
        lie = None if order is None else self.lies.get((kind, (order.stage, getattr(order, "round", 0), order.client)))
        if lie is not None and self.absent:
            raise Absent
        if kind == "train":
            honest: Any = trained(order)
        else:
            reply = app(message, context)
            if lie is None:
                return reply
            honest = codec.decode(reply.content, Description)
        told = honest if lie is None else lie(honest)
        return Message(told if isinstance(told, RecordDict) else codec.encode(told), reply_to=message)


class Unruly(InlineGrid):
    """A network in which answers come twice, late, never, or from the wrong node.

    Args:
        unruly: what happens to the answer of a place: ``twice``, ``late`` (kept and given in the next round),
            ``hangs`` or ``from another``.
    """

    def __init__(self, client_app: Any, clients: int, unruly: dict[Place, str]) -> None:
        super().__init__(client_app, clients)
        self.unruly, self._late = unruly, list[Message]()

    def send_and_receive(self, messages, *, timeout=None) -> Iterator[Message]:
        """Replies as they come, spoilt where the plan says so."""
        messages = list(messages)
        training = bool(messages) and messages[0].metadata.message_type == "train"
        late = self._late if training else []
        self._late = [] if training else self._late
        places = {}
        for message in messages if training else []:
            order = codec.decode(message.content, TrainOrder)
            places[message.metadata.dst_node_id] = (order.stage, order.round, order.client)
        for reply in super().send_and_receive(messages, timeout=timeout):
            how = self.unruly.get(places.get(reply.metadata.src_node_id, (-1, -1, -1)))
            if how == "late":
                self._late.append(reply)
            elif how == "from another":
                reply.metadata._src_node_id = reply.metadata.src_node_id + 1
                yield reply
            elif how != "hangs":
                yield reply
            if how == "twice":
                yield reply
            yield from late
            late = []


def settings(source: Path, *more: str) -> configuration.RunConfig:
    """A small configuration."""
    return configuration.load(source, ["evaluation.samples=2", *more])


def sampled(config: configuration.RunConfig) -> Iterator[tuple[int, int, list[int]]]:
    """Stage, round and clients of a run on two stages."""
    for stage in range(2):
        for round_ in range(config.federation.rounds):
            yield stage, round_, sample(config.federation, config.seed, stage, round_)


def federation(
    config: configuration.RunConfig,
    folder: Path,
    name: str,
    lies: dict[tuple[str, Place], Lie],
    absent: bool = False,
    unruly: dict[Place, str] | None = None,
) -> Run:
    """A whole run."""
    run = RunDir.create(folder, name, configuration.dump(config), describe())
    grid = Unruly(Hostile(lies, absent), config.federation.clients, {} if absent else unruly or {})
    serve(run.path, grid)
    return Run(run.path)
