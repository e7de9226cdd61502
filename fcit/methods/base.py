"""The base of all continual-learning methods: hooks on client and server, with plain LoRA tuning as default.

A method object has no state. The server's state is :class:`ServerState`; what a client needs is sent in its
order; what inference needs is returned by :meth:`Method.knowledge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fcit.config import RunConfig, Section, Training
from fcit.config.kinds import Decoder
from fcit.fedopt.aggregator import Aggregator, Group
from fcit.io.trees import Tensors, arrays
from fcit.methods.factory import Factory as Factory
from fcit.methods.views import ExtraRounds as ExtraRounds
from fcit.methods.views import Held as Held
from fcit.methods.views import QuestionBatch as QuestionBatch
from fcit.methods.views import Session as Session
from fcit.methods.views import Stats as Stats
from fcit.methods.views import Update as Update
from fcit.models.layout import Layout

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

Pair = tuple[int, str]  # (client, shard)
Label = tuple[str, str]  # (letter, description)

#: Invariants that a method can declare (checked by :mod:`fcit.contracts.methods`).
INVARIANTS = frozenset({"starts-at-base", "unchanged-updates", "weighted-mean", "others-untouched", "mix-sums-to-one"})

#: Rules for averaging LoRA factors that know of nothing but the factors; and, beside them, those that a method has to
#: declare, because clients' ranks shrink, or they train factors beside frozen ones, or keep some.
FACTORS = frozenset({"separate", "svd", "hlora", "alternate", "frozen_a"})
MORE_FACTORS = FACTORS | {"hetlora", "flora", "fedex", "fedsa"}

#: What keeps earlier tasks, after the surveys of continual learning (Wang et al., 2024, arXiv 2302.00487): nothing
#: (baselines and references), a term of the loss or a constraint on gradients, stored records, prompts, new parameters
#: for new tasks, the combination of parameters trained apart, or the choice of parameters by the question.
FAMILIES = ("baseline", "regularisation", "replay", "prompts", "expansion", "merging", "routing")


@dataclass
class ServerState:
    """The server's state between rounds; saved in checkpoints as tensors and JSON.

    Attributes:
        subspaces: the tensors of each subspace, by its name.
        shared: tensors that all subspaces have in common: a projector that is ``shared``.
        assigned: the subspace of every (client, shard), set by :meth:`Method.assign`.
        memory: state of the method: JSON values and arrays.
        optimizers: state of the federated optimiser, by subspace.
        factors: state of the rule for averaging factors, by subspace.
        turns: number of rounds in which each subspace was updated.
        stage: counted from 0; set by the server loop.
        round: of the stage, counted from 0; set by the server loop.
        labels: letter and description of what each stage is about; set by the server loop.
    """

    subspaces: dict[str, Tensors] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    assigned: dict[Pair, str] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    factors: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    stage: int = 0
    round: int = 0
    labels: list[Label] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all arrays: subspaces, shared tensors, state of method, optimiser and rule for factors."""
        parts = [self.subspaces, self.shared, self.memory, self.optimizers, self.factors]
        return sum(t.nbytes for t in arrays(parts))


def one_subspace(state: ServerState) -> int:
    """Parameters of the largest subspace and the shared tensors: those active when one subspace answers."""
    largest = max((sum(t.size for t in tensors.values()) for tensors in state.subspaces.values()), default=0)
    return largest + sum(t.size for t in state.shared.values())


class Method:
    """Plain LoRA fine-tuning with a weighted mean: one subspace, no protection of earlier tasks."""

    class Options(Section):
        """Keys under ``method:`` besides ``name``."""

    name: ClassVar[str] = ""
    #: One line for ``fcit list``.
    summary: ClassVar[str] = ""
    #: One of :data:`FAMILIES`, for lists and tables; empty for a method of one's own that is of none.
    family: ClassVar[str] = ""
    #: How the subspaces answer together, for the model card of an export; may depend on the options, as below.
    answers: str = "One adapter answers every question."
    #: Whether :meth:`assign` needs :meth:`describe`'s statistics of new (client, shard) pairs.
    needs_stats: bool = False
    #: References only: the training data of all clients are pooled at one participant, per task or all together.
    pooled: ClassVar[str] = ""  # "", "task" or "all"
    trains: ClassVar[bool] = True
    #: References only: inference is given the true task of a question. This and all that is no ``ClassVar`` may depend
    #: on the options; it is then set on the object.
    needs_task_at_inference: bool = False
    #: Whether the clients of a stage's first round :meth:`measure` something on their shards before they train.
    measures: ClassVar[bool] = False
    #: Whether numbers of a subspace that later stages train on are replaced between stages, so that what a federated
    #: optimiser's clients remember of them (SCAFFOLD's variates) is about numbers that are gone.
    refactors: bool = False
    #: Whether clients keep :attr:`Session.memory` between their orders.
    remembers: bool = False
    #: Whether training needs the shard's identity features (:attr:`Session.identity`).
    needs_identity: ClassVar[bool] = False
    #: Source of the identity features: the instruction, its last line, the image, or instruction and image.
    identity: Literal["text", "suffix", "image", "both"] = "text"
    #: Whether this is our definition, because no paper gives one; shown with a dagger.
    dagger: bool = False
    #: Block of a table: "" (ranked), "replay" or "reference".
    group: str = ""
    #: Rules for averaging LoRA factors that fit the method (``factors:``).
    factors: ClassVar[frozenset[str]] = FACTORS
    #: Whether what clients do or send depends on the round of the stage: the first or the last one is another. Such a
    #: round needs its own clients, which it has none of with ``federation.mode: async``.
    by_round: bool = False
    #: Whether clients may train factors of a smaller rank than the subspace has (``adapter.ranks``): their hooks must
    #: not compare factors with tensors of the whole rank.
    mixes_ranks: ClassVar[bool] = False
    #: Why they may not, as a clause.
    whole_rank: ClassVar[str] = ""
    #: Whether what clients train is averaged by the aggregator's groups, so that ``robust:`` can protect it and
    #: ``privacy:`` covers it; False where :meth:`aggregate` averages by itself.
    robust: ClassVar[bool] = True
    #: Whether the hooks of a client touch its records only in :meth:`loss`, which is a mean over the answer tokens of
    #: the records it is given, one record's terms without another's; ``privacy.record_dp`` needs it.
    by_record: ClassVar[bool] = False
    #: References without a sequence of stages are evaluated once, after the last stage.
    last_stage_only: ClassVar[bool] = False

    #: Subspaces whose weight is below it for every question of a batch are left out of the batch; 0: none is.
    negligible: float = 0.0
    #: The :data:`INVARIANTS` that the contract checks.
    invariants: frozenset[str] = INVARIANTS

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        options = {k: v for k, v in config.method.items() if k != "name"}
        self.options: Any = self.Options.model_validate(options)

    def sends(self) -> bool:
        """Whether clients send statistics of their records beside what they train (:meth:`measure`, :meth:`finish`).

        No rule of ``robust:`` looks at them and nothing of ``privacy:`` covers them: both are refused. Sites send
        none of fewer than ``min_records``.
        """
        return self.measures or type(self).extra_shapes is not Method.extra_shapes

    def sums(self) -> bool:
        """Whether clients send something that the method sums itself, past ``robust:`` and ``privacy:``."""
        return self.sends() or not self.robust

    @property
    def layout(self) -> Layout:
        """The tensors of a subspace."""
        return Layout()

    # ------------------------------------------------------------------ rounds

    def refuse(self, state: ServerState) -> None:
        """Before a run begins: raise :class:`fcit.errors.ConfigError` if its stages (``state.labels``) do not fit."""

    def extra_rounds(self, stage: int) -> ExtraRounds | None:
        """Rounds after those of a stage, in which clients train what :meth:`select` returns; default: none.

        They count as any round, in orders, checks, cost and privacy; :meth:`assign` gives their subspace.
        """
        return None

    def rounds(self, stage: int) -> int:
        """Number of a stage's rounds, with the extra ones."""
        extra = self.extra_rounds(stage)
        return self.config.federation.rounds + (extra.count if extra else 0)

    def extra(self, stage: int, round_: int) -> ExtraRounds | None:
        """The extra rounds, if this round of a stage is one of them."""
        return None if round_ < self.config.federation.rounds else self.extra_rounds(stage)

    def training(self, stage: int, round_: int) -> Training:
        """The settings of local training in a round."""
        extra, settings = self.extra(stage, round_), self.config.training
        return settings.model_copy(update=extra.training) if extra else settings

    # ------------------------------------------------------------------ client

    def describe(self, features: np.ndarray) -> Stats:
        """Additive statistics of a shard from its identity features ``(N, d)``."""
        return Stats(features.astype(np.float64).sum(axis=0), len(features))

    def measure(self, session: Session) -> Tensors:
        """Measure the shard with the model of the order, without a step; tensors as :meth:`measured_shapes` announces.

        Called before the first round of a stage, see :meth:`measuring`. What is sent has to be additive over clients.
        """
        return {}

    def select(self, session: Session) -> Sequence[Any]:
        """The encoded records that an order trains on, before anything is loaded; default: the whole shard."""
        return session.examples

    def measured_records(self, count: int) -> int:
        """Of how many of so many records clients make the statistics that they send (:meth:`sends`).

        A site compares it with ``min_records``. If they are too few, it refuses all orders on these records.
        """
        return count

    def prepare(self, session: Session) -> None:
        """Before the first step; the training slot holds the tensors of the order."""

    def loss(self, session: Session, examples: list[Any], features: Any) -> Any:
        """Loss of one batch: encoded records and the features of their images ``(images, patches, d)``, in order.

        Default: mean cross-entropy over answer tokens.
        """
        return session.backbone.loss(examples, features)

    def penalty(self, session: Session) -> Any:
        """A term of the trained parameters alone, which is added to the loss of every batch."""
        return 0.0

    def on_gradients(self, session: Session) -> None:
        """After the backward pass of each step, before gradient clipping."""

    def on_step(self, session: Session) -> None:
        """After each step of the optimiser and what the federated optimiser adds to it."""

    def finish(self, session: Session) -> Tensors:
        """After the last step: extra tensors for the server, as announced by :meth:`extra_shapes`."""
        return {}

    # ------------------------------------------------------------------ server

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        """Assign a subspace to every pair of the round (``state.assigned``); new subspaces are created here."""
        if "0" not in state.subspaces:
            state.subspaces["0"] = make("0")
        for pair in pairs:
            state.assigned[pair] = "0"

    def measuring(self, stage: int) -> bool:
        """Whether clients :meth:`measure` before a stage; default: before each, if :attr:`measures`."""
        return self.measures

    def measured_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        """Names and shapes (float32) of what :meth:`measure` returns; other replies are rejected."""
        return {}

    def absorb(self, state: ServerState, measured: Iterable[Update]) -> None:
        """Take in what clients have measured (:attr:`Update.extra`), in ascending client order; nothing was trained."""

    def frozen(self, names: Iterable[str], stage: int) -> list[str]:
        """Tensors that clients load in a stage and neither train nor send back, beside those of ``factors:``.

        Args:
            names: of a subspace's tensors.
        """
        return []

    def common(self, stage: int) -> str | None:
        """The subspace that :meth:`assign` gives every client in a stage; None if it depends on the client.

        ``privacy.sampling: secret`` needs one: of several, those that move would show who took part.
        """
        return "0" if type(self).assign is Method.assign else None

    def settled(self, state: ServerState, pair: Pair) -> bool:
        """Whether a pair has the subspace that it trains now, and not one of an earlier stage that had its shard, too.

        Default: it has any and, except in extra rounds, whose shards are their stage's own, that of :meth:`common`.
        For methods that move a pair from stage to stage without a common subspace.
        """
        name = state.assigned.get(pair)
        extra = self.extra(state.stage, state.round) is not None
        return name is not None and (extra or self.common(state.stage) in (None, name))

    def tunable(self, state: ServerState, pair: Pair, stage: int) -> bool:
        """Whether a client can go on training the subspace of a pair at the end of a stage (``evaluation.personal``).

        Not one that the method has taken away, nor one of an earlier stage, which orders of this stage hold frozen.
        """
        name = state.assigned[pair]
        return name in state.subspaces and self.common(stage) in (None, name)

    def broadcast(self, state: ServerState, pair: Pair) -> Tensors:
        """Extra float32 arrays for a client's order, beside its subspace and the shared tensors."""
        return {}

    def brief(self, state: ServerState) -> dict[str, Any]:
        """JSON values for all orders of a round; default: none."""
        return {}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        """Named groups of float32 arrays that never change: teachers, anchors, frozen subspaces.

        Each group is sent to a client once, which keeps it; :attr:`Session.constants` holds all groups of this
        dictionary. A group with changed tensors needs a new name, and a name that is left out does not come again:
        clients have removed the group.
        """
        return {}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        """Names and shapes (float32) of what :meth:`finish` returns; other updates are rejected."""
        return {}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        """Why an update is rejected for its extra tensors (finite, of the announced shapes); None if it is not."""
        return None

    def end_stage(self, state: ServerState, stage: int) -> None:
        """After the last round of a stage, before its evaluation."""

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        """Aggregate accepted updates, in ascending client order, into the state.

        Subspace tensors are averaged within their subspace, shared tensors over all clients:
        theta <- fedopt(theta, sum_k n_k theta_k / sum_k n_k).
        """
        groups: dict[str, Group] = {}
        shared = aggregator.group("shared", state.shared, state.optimizers.setdefault("shared", {}))
        for update in updates:
            name = update.subspace
            if name not in groups:
                memory = state.optimizers.setdefault(f"subspace-{name}", {})
                groups[name] = aggregator.group(name, state.subspaces[name], memory)
            subspace = {k: v for k, v in update.tensors.items() if k not in state.shared}
            groups[name].add(subspace, update.examples, update.fedopt)
            common = {k: v for k, v in update.tensors.items() if k in state.shared}
            if common:
                shared.add(common, update.examples, update.fedopt)
        for name in sorted(groups):
            state.subspaces[name] = groups[name].result()
        state.shared = shared.result()

    def report(self, state: ServerState) -> list[dict[str, Any]]:
        """Heat maps for the report, each with ``title``, ``rows``, ``columns`` and ``values`` (0 to 1)."""
        return []

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        """The knowledge that :meth:`route` needs, as JSON values and tensors."""
        return {}, {}

    def route(self, names: list[str], knowledge: tuple[dict[str, Any], Tensors], features: np.ndarray) -> np.ndarray:
        """Weights ``(N, E)`` of the subspaces ``names`` for questions with features ``(N, d)``.

        The task of a question is not known. Default: weight one for the only subspace.
        """
        return np.ones((len(features), len(names)), dtype=np.float32)

    def choose(self, questions: QuestionBatch, mix: np.ndarray) -> np.ndarray:
        """The final mix ``(N, E)`` of a batch, for methods that ask the model; the mixture of subspaces is loaded.

        Like :meth:`route` it treats every question by itself. Default: what :meth:`route` returned.
        """
        return mix

    @property
    def answers_by(self) -> Decoder:
        """``evaluation.decoder``; ``auto`` is transformers where :meth:`answer` is code of one's own.

        That code may register hooks which hold values for every question of a batch, and static decoding lets
        questions leave the batch and captures steps.
        """
        decoder, own = self.config.evaluation.decoder, not type(self).answer.__module__.startswith("fcit.")
        return "transformers" if own and decoder == "auto" else decoder

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        """Answers to a batch of questions under their mix ``(N, E)``; the mixture of subspaces is loaded.

        They are decoded as :attr:`decoder` says.
        """
        with questions.adapters.mixed(mix, self.negligible):
            return questions.backbone.generate(questions.examples, questions.features, questions.limit)

    def held(self, shape: Shape, stages: int) -> Held:
        """What the method keeps after so many stages of a run, for `fcit doctor`.

        Args:
            shape: sizes of the backbone.
        """
        return Held()

    def active(self, state: ServerState) -> int:
        """Trained parameters that are active for one question; default: all subspaces and the shared tensors."""
        return sum(t.size for t in arrays([state.subspaces, state.shared]))


def objective(method: Method, session: Session, examples: list[Any], features: Any) -> Any:
    """What a step minimises: the method's loss of a batch and its penalty."""
    return method.loss(session, examples, features) + method.penalty(session)
