"""What a continual-learning method is: a few hooks, each with plain LoRA tuning as its default.

A method object keeps no hidden memory. What the server remembers is :class:`ServerState`; what a
client needs travels in its order; what inference needs travels in :meth:`Method.knowledge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from fcit import seeding
from fcit.config import RunConfig, Section
from fcit.fedopt.aggregator import Aggregator, Group
from fcit.models.layout import Layout

Tensors = dict[str, np.ndarray]
Pair = tuple[int, str]  # (client, shard)

#: Promises most methods keep and each declares (see :mod:`fcit.contracts.methods`).
INVARIANTS = frozenset({"starts-at-base", "unchanged-updates", "weighted-mean", "others-untouched", "mix-sums-to-one"})


@dataclass(frozen=True)
class Stats:
    """Additive statistics of one shard: feature sum ``(d,)`` float64 and record count."""

    total: np.ndarray
    count: int


@dataclass(frozen=True)
class Update:
    """What one client sends back, after validation."""

    client: int
    subspace: str
    examples: int
    tensors: Tensors
    extra: Tensors = field(default_factory=dict)  # what Method.finish returned
    fedopt: Tensors = field(default_factory=dict)  # what the federated optimiser's finish returned


@dataclass
class Session:
    """One local training as a method's client hooks see it; gone when the order is done.

    ``memory`` is this client's own and is kept for its next order if the method sets
    :attr:`Method.remembers`; it never leaves the client.
    """

    backbone: Any  # the frozen model; ``backbone.loss(examples, features)`` is the plain loss
    adapters: Any  # ``adapters.trainable``: name -> parameter, what is being trained
    client: int
    shard: str
    stage: int  # counted from 0, as is the round of the stage
    round: int
    subspace: str
    received: Tensors = field(default_factory=dict)  # what Method.broadcast sent
    memory: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Tensors] = field(default_factory=dict)  # what Method.constants named
    examples: Sequence[Any] = ()  # the shard, encoded
    identity: np.ndarray | None = None  # its identity features (N, d), if Method.needs_identity
    image_root: Any = None  # folder of the shard's images
    seed: int = 0
    last_round: bool = False  # of the stage
    batch: list[int] = field(default_factory=list)  # indices into the shard of the batch at hand
    lr: float = 0.0  # learning rate of the step at hand
    notes: dict[str, Any] = field(default_factory=dict)  # free for the method, e.g. anchors as torch tensors

    def generator(self, purpose: str) -> np.random.Generator:
        """Randomness that belongs to this order."""
        return seeding.generator(self.seed, purpose, self.stage, self.round, self.client, self.shard)


@dataclass
class Asked:
    """A batch of test questions as :meth:`Method.answer` gets it."""

    backbone: Any
    adapters: Any
    subspaces: list[Tensors]  # in the order of the mix's columns
    examples: list[Any]
    features: Any  # vision features (images, patches, d), question by question
    identity: np.ndarray  # (N, d)
    limit: int  # new tokens at most


@dataclass
class ServerState:
    """Everything the server remembers between rounds; savable as tensors plus JSON."""

    subspaces: dict[str, Tensors] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    assigned: dict[Pair, str] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)  # a method's own: JSON values and arrays
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)  # the federated optimiser's, by subspace
    turns: dict[str, int] = field(default_factory=dict)  # rounds in which each subspace got updates
    stage: int = 0  # where the timeline stands, counted from 0; the loop sets both
    round: int = 0

    @property
    def bytes(self) -> int:
        """Size of all arrays held: subspaces, shared tensors, the method's and the optimiser's memory."""
        return sum(t.nbytes for t in arrays([self.subspaces, self.shared, self.memory, self.optimizers]))


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in nested dicts and lists."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from arrays(inner)


def one_subspace(state: ServerState) -> int:
    """Numbers of the largest subspace and the shared tensors: what acts where one subspace answers."""
    largest = max((sum(t.size for t in tensors.values()) for tensors in state.subspaces.values()), default=0)
    return largest + sum(t.size for t in state.shared.values())


class Factory:
    """Creates subspaces on the server: a function of (seed, subspace id) only.

    ``projector`` holds the backbone's own projector (empty when it is frozen), ``given`` tensors that
    start from the backbone as well: the soft prompts of a pool.
    """

    def __init__(
        self,
        seed: int,
        shapes: dict[str, tuple[int, ...]],
        projector: Tensors | None = None,
        std: float = 0.01,
        given: Tensors | None = None,
    ) -> None:
        self.seed, self.shapes, self.projector, self.std = seed, shapes, projector or {}, std
        self.given = given or {}

    def __call__(self, name: str) -> Tensors:
        """A ~ N(0, 0.01^2), B = 0 (the reference's initialisation); gates as torch starts a Linear."""
        rng = seeding.generator(self.seed, "subspace", name)
        return {key: self._start(key, shape, rng) for key, shape in sorted(self.shapes.items())}

    def _start(self, key: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if key in self.given:
            return self.given[key].copy()
        if ".lora_B." in key:
            return np.zeros(shape, dtype=np.float32)
        if ".lora_A." in key:
            return rng.normal(0.0, self.std, shape).astype(np.float32)
        # Gates: kaiming-uniform with a = sqrt 5, i.e. U(-1, 1) / sqrt(d_in). Keys of a prompt pool alike.
        return (rng.uniform(-1.0, 1.0, shape) / np.sqrt(shape[-1])).astype(np.float32)


class Method:
    """Plain LoRA fine-tuning with a weighted mean: one subspace, no protection of the past."""

    class Options(Section):
        """Keys under ``method:`` besides ``name``."""

    name: ClassVar[str] = ""
    #: One line for ``fcit list``.
    summary: ClassVar[str] = ""
    #: Whether :meth:`assign` needs :meth:`describe`'s statistics of new (client, shard) pairs.
    needs_stats: ClassVar[bool] = False
    #: References only: training data are pooled at one participant.
    pooled: ClassVar[str] = ""  # "", "task" or "all"
    trains: ClassVar[bool] = True
    #: References only: inference is told which task a question belongs to. This, ``identity``, ``group``,
    #: ``dagger`` and ``invariants`` may depend on the options: set them on the object, then.
    needs_task_at_inference: bool = False
    #: Whether clients keep :attr:`Session.memory` between their orders.
    remembers: ClassVar[bool] = False
    #: Whether training needs the shard's identity features (:attr:`Session.identity`).
    needs_identity: ClassVar[bool] = False
    #: What identity features are made of: the instruction, the image or both.
    identity: Literal["text", "image", "both"] = "text"
    #: Our own definition, where no paper gives one: shown with a dagger.
    dagger: bool = False
    #: Tables list "reference" and "replay" methods apart.
    group: str = ""
    #: Ways of averaging LoRA factors that make sense for it (``factors:``).
    factors: ClassVar[frozenset[str]] = frozenset({"separate", "svd", "alternate", "frozen_a"})
    #: Whether all that clients send is averaged by the aggregator's groups, where ``robust:`` can stand in between.
    robust: ClassVar[bool] = True
    #: References without a timeline are evaluated once, after the last stage.
    last_stage_only: ClassVar[bool] = False

    #: Which of :data:`INVARIANTS` the contract holds it to.
    invariants: frozenset[str] = INVARIANTS

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        options = {k: v for k, v in config.method.items() if k != "name"}
        self.options: Any = self.Options.model_validate(options)

    @property
    def layout(self) -> Layout:
        """What a subspace consists of."""
        return Layout()

    # ------------------------------------------------------------------ client

    def describe(self, features: np.ndarray) -> Stats:
        """Additive statistics of a shard from its identity features ``(N, d)``."""
        return Stats(features.astype(np.float64).sum(axis=0), len(features))

    def prepare(self, session: Session) -> None:
        """Before the first step; the slot holds the broadcast tensors."""

    def loss(self, session: Session, examples: list[Any], features: Any) -> Any:
        """Loss of one batch: encoded records and the features of their images ``(images, patches, d)``, in order.

        Default: mean cross-entropy over answer tokens.
        """
        return session.backbone.loss(examples, features)

    def on_gradients(self, session: Session) -> None:
        """After the backward pass of each step, before clipping, where there is any."""

    def on_step(self, session: Session) -> None:
        """After each optimiser step."""

    def finish(self, session: Session) -> Tensors:
        """After the last step: extra tensors for the server, as :meth:`extra_shapes` announces them."""
        return {}

    # ------------------------------------------------------------------ server

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        """Give every pair of the round a subspace in ``state.assigned``; new ones are made here."""
        if "0" not in state.subspaces:
            state.subspaces["0"] = make("0")
        for pair in pairs:
            state.assigned[pair] = "0"

    def broadcast(self, state: ServerState, pair: Pair) -> Tensors:
        """Extra float32 arrays for a client's order, beside its subspace and the shared tensors."""
        return {}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        """Named groups of float32 arrays that never change: teachers, anchors, frozen subspaces.

        A client is sent each group once and keeps it; all groups of this dictionary are in
        :attr:`Session.constants`. A group whose tensors would change needs a new name.
        """
        return {}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        """Names and shapes (float32) of what :meth:`finish` returns; anything else is rejected."""
        return {}

    def doubt(self, extra: Tensors, examples: int) -> str | None:
        """Why an update's extra tensors (finite, of the announced shapes) are not believed, or None."""
        return None

    def end_stage(self, state: ServerState, stage: int) -> None:
        """After the last round of a stage, before its evaluation."""

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        """Fold accepted updates, in ascending client order, into the state.

        Subspace tensors are averaged within their subspace, shared tensors over everybody:
        theta <- fedopt(theta, sum_k n_k theta_k / sum_k n_k).
        """
        groups: dict[str, Group] = {}
        shared = aggregator.group("shared", state.shared, state.optimizers.setdefault("shared", {}))
        for update in updates:
            name = update.subspace
            if name not in groups:
                memory = state.optimizers.setdefault(f"subspace-{name}", {})
                groups[name] = aggregator.group(name, state.subspaces[name], memory)
            own = {k: v for k, v in update.tensors.items() if k not in state.shared}
            groups[name].add(own, update.examples, update.fedopt)
            common = {k: v for k, v in update.tensors.items() if k in state.shared}
            if common:
                shared.add(common, update.examples, update.fedopt)
        for name in sorted(groups):
            state.subspaces[name] = groups[name].result()
        state.shared = shared.result()

    def report(self, state: ServerState) -> list[dict[str, Any]]:
        """Heat maps for the report: ``title``, ``rows``, ``columns``, ``values`` (0 to 1)."""
        return []

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        """What :meth:`route` needs, as JSON values and tensors."""
        return {}, {}

    def route(self, names: list[str], knowledge: tuple[dict[str, Any], Tensors], features: np.ndarray) -> np.ndarray:
        """Weights ``(N, E)`` of the subspaces ``names`` for questions with features ``(N, d)``.

        Never sees the task. Default: the only subspace, weight one.
        """
        return np.ones((len(features), len(names)), dtype=np.float32)

    def answer(self, asked: Asked, mix: np.ndarray | None) -> list[str]:
        """Texts for a batch of questions under their mix ``(N, E)``; the mixture is loaded."""
        with asked.adapters.mixed(mix):
            return asked.backbone.generate(asked.examples, asked.features, asked.limit)

    def active(self, state: ServerState) -> int:
        """Trained numbers that act on one question; default: all subspaces and the shared tensors."""
        return sum(t.size for t in arrays([state.subspaces, state.shared]))
