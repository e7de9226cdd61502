"""What a method's hooks are given and declare: statistics, updates, a training, questions, extra rounds, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fcit import seeding
from fcit.config import RunConfig
from fcit.data.records import Record, TestRecord
from fcit.io.trees import Tensors

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


@dataclass(frozen=True)
class Stats:
    """Additive statistics of one shard: feature sum ``(d,)`` float64 and record count."""

    total: np.ndarray
    count: int


@dataclass(frozen=True)
class Update:
    """A validated update of one client.

    Attributes:
        examples: number of records it was trained on, the weight of the mean.
        tensors: what was trained, by name, float32.
        extra: what :meth:`~fcit.methods.base.Method.finish` returned.
        fedopt: what the federated optimiser's ``finish`` returned.
    """

    client: int
    subspace: str
    examples: int
    tensors: Tensors
    extra: Tensors = field(default_factory=dict)
    fedopt: Tensors = field(default_factory=dict)


@dataclass(kw_only=True)
class Session:
    """One local training, as passed to a method's client hooks; it ends with the order.

    Attributes:
        backbone: the frozen model; ``backbone.loss(examples, features)`` is the plain loss.
        adapters: ``adapters.trainable``: name -> trained parameter, on the run's device; ``adapters.read()``: a copy
            of them as float32 arrays.
        client: number of the client.
        shard: name of the shard it trains on.
        stage: counted from 0.
        round: of the stage, counted from 0.
        subspace: name of the subspace that is trained.
        received: what :meth:`~fcit.methods.base.Method.broadcast` sent.
        brief: what :meth:`~fcit.methods.base.Method.brief` sent.
        memory: JSON values and arrays that belong to this client; kept for its next order if the method sets
            :attr:`~fcit.methods.base.Method.remembers`, and never sent anywhere.
        constants: what :meth:`~fcit.methods.base.Method.constants` named.
        examples: the shard, encoded; after :meth:`~fcit.methods.base.Method.select` what it has selected.
        records: the shard before it is encoded.
        identity: its identity features ``(N, d)``, if :attr:`~fcit.methods.base.Method.needs_identity`.
        image_root: folder of the shard's images.
        seed: of the run; see :meth:`generator`.
        last_round: whether this is the last round of the stage.
        batch: indices into the shard of the current batch, or of the part of it that ``loss`` is called for.
        step: those of the whole batch.
        lr: learning rate of the current step.
        notes: free for the method during this order, e.g. anchors as torch tensors.
    """

    backbone: Any
    adapters: Any
    client: int
    shard: str
    stage: int
    round: int
    subspace: str
    received: Tensors = field(default_factory=dict)
    brief: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Tensors] = field(default_factory=dict)
    examples: Sequence[Any] = ()
    records: Sequence[Record] = ()
    identity: np.ndarray | None = None
    image_root: Any = None
    seed: int = 0
    last_round: bool = False
    batch: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    lr: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def generator(self, purpose: str) -> np.random.Generator:
        """Randomness that belongs to this order."""
        return seeding.generator(self.seed, purpose, self.stage, self.round, self.client, self.shard)


@dataclass
class QuestionBatch:
    """A batch of test questions, as passed to a method's ``choose`` and ``answer``.

    Attributes:
        subspaces: in the order of the mix's columns.
        examples: the questions, encoded.
        features: vision features ``(images, patches, d)``, question by question.
        identity: identity features ``(N, d)``.
        limit: maximum of new tokens.
        knowledge: what :meth:`~fcit.methods.base.Method.knowledge` returned.
        records: the questions before they are encoded.
        image_root: folder of their images; ``backbone.encoder_below(image_root)`` encodes other texts with them.
    """

    backbone: Any
    adapters: Any
    subspaces: list[Tensors]
    examples: list[Any]
    features: Any
    identity: np.ndarray
    limit: int
    knowledge: tuple[dict[str, Any], Tensors] = field(default_factory=lambda: ({}, {}))
    records: Sequence[TestRecord] = ()
    image_root: Any = None


@dataclass(frozen=True)
class ExtraRounds:
    """Rounds that follow those of a stage, in which clients train on other records than the stage's.

    Attributes:
        count: number of them.
        training: keys of ``training:`` that have other values in them.
        most: records that a client can train on in one of them.
    """

    count: int
    training: dict[str, Any]
    most: int


@dataclass(frozen=True)
class Held:
    """Bytes that a method keeps beside what is trained, by what for: what is of the size of adapters, at most.

    Attributes:
        device: on a worker's device, from when it is first needed on.
        training: on a worker's device while it trains.
        client: on the disk of one client between its orders, and in its worker's memory while it trains.
        server: in the server's memory, and in its checkpoints.
    """

    device: dict[str, float] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)
    client: dict[str, float] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=dict)


def subspace_bytes(config: RunConfig, shape: Shape, *projectors: str) -> float:
    """Bytes of a LoRA subspace in float32, with the projector where ``adapter.projector`` is one of these."""
    projector = shape.projector if config.adapter.projector in projectors else 0
    return 4.0 * (shape.adapter(config.adapter.rank) + projector)
