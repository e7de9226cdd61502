"""The messages between server and clients as typed dataclasses: orders, and what clients reply."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fcit.io.trees import Tensors, under

#: Prefix of a method's own tensors in training orders and updates.
EXTRA = "extra/"
#: Prefix of the federated optimiser's own tensors.
FEDOPT = "fedopt/"
#: Prefix of constants, ``constant/<group>/<name>``: sent once, kept by the client.
CONSTANT = "constant/"
#: What names of the constants begin with that belong to the rule for factors, not to the method.
KEPT = "factors."
#: Form of the name of a group of constants and of a version of a memory: they become file names at the client.
NAME = re.compile(r"\w[\w.-]*")
#: How a client says that it opens no second sum of a round of secure aggregation.
OPENED = "a sum with this update was opened before"
#: Prefixes of all tensors that are not trained.
PREFIXES = (EXTRA, FEDOPT, CONSTANT)


def is_learnt(name: str) -> bool:
    """Whether a tensor of a training order is one of the model's, to be trained or frozen."""
    return not name.startswith(PREFIXES)


def memory_version(stage: int, round_: int) -> str:
    """Name of the version of a client's memory after a round."""
    return f"{stage}-{round_}"


@dataclass(kw_only=True)
class DescribeOrder:
    """Order to send the additive statistics of one shard."""

    config: str  # the run's configuration as YAML
    client: int
    shard: str
    tasks: list[int]
    run: str = ""
    stage: int = 0


@dataclass(kw_only=True)
class Description:
    """Reply to :class:`DescribeOrder`: record count and, as ``total``, the feature sum."""

    client: int
    shard: str
    count: int
    tensors: Tensors


@dataclass(kw_only=True)
class TrainOrder:
    """Train one subspace on one shard.

    ``budget``/``offset`` are set for pooled references only: so many samples from a seeded endless
    permutation, starting at ``offset``. ``memory`` is the version of the client's own memory that the
    server knows. Tensors under ``extra/`` are the method's own, those under ``fedopt/`` the federated
    optimiser's; ``brief`` holds the method's JSON values for the round. ``constants`` names the groups the client
    needs; new ones come along under ``constant/``. It keeps those named in ``keep`` as well, as a later order may name
    them without bringing them, and removes all others. Tensors named in ``frozen`` are loaded and neither trained nor
    sent back. With ``measure`` nothing is trained: the update holds what the method measures on the shard, under
    ``extra/``.
    ``participations``: how often the client will train on these records in the whole run, with ``privacy.record_dp``,
    else 0.
    """

    config: str
    stage: int
    round: int
    client: int
    shard: str
    tasks: list[int]
    subspace: str
    tensors: Tensors
    budget: int | None = None
    offset: int = 0
    memory: str = ""
    constants: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    brief: dict[str, Any] = field(default_factory=dict)
    measure: bool = False
    run: str = ""  # the run's id: a site that takes part in several keeps their memories apart
    participations: int = 0

    @property
    def answered(self) -> dict[str, Any]:
        """The fields that an update to this order repeats."""
        return {name: getattr(self, name) for name in ("stage", "round", "client", "shard", "subspace")}

    @property
    def trained(self) -> Tensors:
        """The tensors that the client trains and returns, as the server has them."""
        if self.measure:
            return {}
        return {n: t for n, t in self.tensors.items() if is_learnt(n) and n not in self.frozen}


@dataclass(kw_only=True)
class ClientUpdate:
    """Reply to :class:`TrainOrder`: the trained tensors and how they were trained."""

    stage: int
    round: int
    client: int
    shard: str
    subspace: str
    examples: int
    steps: int
    loss: float
    seconds: float
    tensors: Tensors
    kept: int = 0  # bytes this client keeps between its orders
    how: dict[str, Any] = field(default_factory=dict)  # the site's own choices: dtype, micro_batch, checkpointing
    skipped: int = 0  # records of the shard that could not be used


@dataclass(kw_only=True)
class KeysOrder:
    """Order to make keys for a session of secure aggregation, its first phase (:mod:`fcit.privacy.secagg`).

    ``session`` begins with stage and round, and names one attempt at the sum of one group.
    """

    config: str
    stage: int
    round: int
    client: int
    session: str
    run: str = ""


@dataclass(kw_only=True)
class PublicKeys:
    """Reply to :class:`KeysOrder`: two public keys, ``sealing`` and ``masking``, uint8 ``(32,)``."""

    client: int
    session: str
    tensors: Tensors


@dataclass(kw_only=True)
class ShareOrder:
    """Order to share the session's secrets among neighbours.

    ``members`` are the clients of the group in the order of the ring; ``sealing`` and ``masking`` hold their public
    keys, uint8 ``(members, 32)``.
    """

    config: str
    client: int
    session: str
    members: list[int]
    tensors: Tensors
    run: str = ""


@dataclass(kw_only=True)
class SealedShares:
    """Reply to :class:`ShareOrder`: ``sealed`` ``(receivers, bytes)``, and ``commitment`` to the client's own mask."""

    client: int
    session: str
    receivers: list[int]
    tensors: Tensors


@dataclass(kw_only=True)
class MaskOrder(TrainOrder):
    """Order to train and to send the update masked.

    ``members`` are the clients that have shared their secrets. ``most`` is the largest weight that the sum has room
    for, ``room`` the largest number of clients; ``clip`` is the clipping norm with differential privacy.
    """

    session: str
    members: list[int]
    most: int
    room: int
    clip: float | None = None


@dataclass(kw_only=True)
class MaskedUpdate:
    """Reply to :class:`MaskOrder`: ``masked``, a vector of uint32 or uint64. Records and loss are in it, too."""

    stage: int
    round: int
    client: int
    shard: str
    subspace: str
    session: str
    seconds: float
    tensors: Tensors
    kept: int = 0
    how: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class UnmaskOrder:
    """Order to open shares: for every neighbour in ``alive`` that of its own mask, for others that of their key.

    ``sealed`` ``(senders, bytes)`` is what the neighbours ``senders`` have sealed for this client.
    """

    config: str
    client: int
    session: str
    alive: list[int]
    senders: list[int]
    tensors: Tensors
    run: str = ""


@dataclass(kw_only=True)
class OpenedShares:
    """Reply to :class:`UnmaskOrder`: ``shares`` ``(owners, 16)`` of the secrets of ``owners``.

    ``unreadable`` are neighbours whose sealed shares could not be opened.
    """

    client: int
    session: str
    owners: list[int]
    unreadable: list[int]
    tensors: Tensors


@dataclass(kw_only=True)
class EvaluateOrder:
    """Order to answer records ``first`` to ``last`` (not included) of a dataset with the current subspaces.

    ``names`` fixes the order of the subspaces in ``tensors``. With ``client`` it is to answer with factors of its own,
    of the version ``memory`` of what it keeps. A stretch starts at a multiple of the
    evaluation batch size, so that batches are the same however a dataset is cut.
    """

    config: str
    dataset: str
    first: int
    last: int
    task: str
    names: list[str]
    knowledge: dict[str, Any]
    tensors: Tensors
    client: int | None = None
    memory: str = ""
    run: str = ""


@dataclass(kw_only=True)
class PersonalOrder:
    """Order to a client to score models on records of its own shard that are kept out of training.

    Tensors are those of an :class:`EvaluateOrder`, and what a :class:`TrainOrder` has beside the model. The other
    fields are those of a training order in the last round of the stage.

    Attributes:
        subspace: the client's, one of ``names``; empty if the method has none for it any more: nothing is tuned then.
        alone: rounds that the client trains a fresh adapter on its own.
    """

    config: str
    stage: int
    round: int
    client: int
    shard: str
    tasks: list[int]
    subspace: str
    task: str
    names: list[str]
    knowledge: dict[str, Any]
    tensors: Tensors
    alone: int
    memory: str = ""
    constants: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    brief: dict[str, Any] = field(default_factory=dict)
    run: str = ""

    def training(self) -> TrainOrder:
        """The order of a round of local training that begins from the model at hand."""
        place = self.names.index(self.subspace)
        learnt = under(self.tensors, "shared/") | under(self.tensors, f"subspace-{place}/")
        beside = {name: tensor for name, tensor in self.tensors.items() if not is_learnt(name)}
        return TrainOrder(
            config=self.config,
            stage=self.stage,
            round=self.round,
            client=self.client,
            shard=self.shard,
            tasks=self.tasks,
            subspace=self.subspace,
            tensors=learnt | beside,
            memory=self.memory,
            constants=self.constants,
            frozen=self.frozen,
            brief=self.brief,
            run=self.run,
        )


@dataclass(kw_only=True)
class PersonalScores:
    """Reply to :class:`PersonalOrder`: a score for each model that was asked, and how many questions there were."""

    client: int
    shard: str
    scores: dict[str, float]
    count: int
    seconds: float


@dataclass(kw_only=True)
class ScoreOrder:
    """Order to a site to score its own test splits; tensors and ``memory`` are those of an :class:`EvaluateOrder`."""

    config: str
    client: int
    stage: int
    names: list[str]
    knowledge: dict[str, Any]
    tensors: Tensors
    memory: str = ""
    run: str = ""


@dataclass(kw_only=True)
class SiteScores:
    """Reply to :class:`ScoreOrder`: score and number of questions of each of the site's own tasks, by its number."""

    client: int
    scores: dict[str, float]
    counts: dict[str, int]
    seconds: float


@dataclass(kw_only=True)
class Answers:
    """Reply to :class:`EvaluateOrder`: answers to a stretch of a data set, in its order, and mixes ``(N, E)``."""

    dataset: str
    first: int
    texts: list[str]
    seconds: float
    tensors: Tensors = field(default_factory=dict)


@dataclass(kw_only=True)
class ProbeOrder:
    """Order to send names and shapes of the trainable tensors of a subspace."""

    config: str
    run: str = ""


@dataclass(kw_only=True)
class Probe:
    """Reply to :class:`ProbeOrder`; ``tensors`` holds the backbone's own projector.

    ``hashes`` are of what must be the same at all clients: backbone, tokenizer, processor, identity, layout. ``rank``
    is the largest adapter rank that the client trains at, 0 for any.
    """

    shapes: dict[str, list[int]]
    identity_width: int
    versions: dict[str, str]
    tensors: Tensors
    hashes: dict[str, str] = field(default_factory=dict)
    rank: int = 0


@dataclass(kw_only=True)
class Name:
    """Reply of a node to ``query.whoami``: the number of its client."""

    client: int
