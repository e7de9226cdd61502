"""Orders to clients: to describe a shard, to train a subspace on it, to answer questions, to score tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import RunError
from fcit.federation.messages import (
    CONSTANT,
    EXTRA,
    FEDOPT,
    KEPT,
    NAME,
    ClientUpdate,
    DescribeOrder,
    EvaluateOrder,
    ScoreOrder,
    TrainOrder,
)
from fcit.federation.thin import Thin
from fcit.fedopt.base import FedOpt
from fcit.fedopt.factors import Separate
from fcit.fedopt.robust import Off
from fcit.io import trees
from fcit.io.trees import Tensors, under
from fcit.methods.base import Method, ServerState
from server.checkpoint import Progress
from server.participants import Slot
from server.ranks import Ranks


class Orders:
    """Makes the orders of one run, whose id they carry.

    Args:
        planned: how often a participation's client will train on its records, for :attr:`TrainOrder.participations`.
        ranks: of the clients; default: all train at the run's rank.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: Stream,
        method: Method,
        fedopt: FedOpt,
        run: str = "",
        planned: Callable[[Slot], int] = lambda slot: 0,
        ranks: Ranks | None = None,
    ) -> None:
        self.run, self._planned, self._ranks = run, planned, ranks
        self.config, self.stream, self.method, self.fedopt = config, stream, method, fedopt
        self.factors: Separate = registry.resolve("factors", config.factors)()
        self.robust: Off = registry.resolve("robust", config.robust)()
        self.thin = Thin.of(config, method.pooled)
        self.text = configuration.dump(config)

    @property
    def remembered(self) -> bool:
        """Whether clients keep a memory between their orders, of which each round makes a new version."""
        return any(part.remembers for part in (self.method, self.fedopt, self.factors, self.thin) if part is not None)

    @property
    def bounded_by_adamw(self) -> bool:
        """Whether AdamW alone moves what clients train; False where a part that could move it is the user's own."""
        parts = self.config.method["name"], self.config.fedopt["name"], self.config.training.trainer or ""
        users_own = any(map(registry.is_own, parts)) or self.config.sites.trainer
        hooks = type(self.method).on_step is Method.on_step and type(self.fedopt).on_step is FedOpt.on_step
        # Numbers of a shorter format are rounded at every step.
        exact = {self.config.backbone.dtype, *self.config.sites.dtypes} == {"float32"}
        return hooks and not users_own and exact

    def describe(self, slot: Slot, stage: int) -> DescribeOrder:
        """Order to describe a participation's shard, before its first training."""
        return DescribeOrder(
            config=self.text, client=slot.client, shard=slot.shard, tasks=list(slot.tasks), run=self.run, stage=stage
        )

    def frozen(self, state: ServerState, name: str) -> list[str]:
        """Tensors of a subspace that are not trained in the round at hand, by ``factors:`` and by the method."""
        names = list(state.subspaces[name])
        by_turn = self.factors.frozen(names, state.turns.get(name, 0))
        return sorted({*by_turn, *self.method.frozen(names, state.stage)})

    def at_home(self, state: ServerState, name: str, client: int) -> int:
        """How many numbers of a subspace a client trains, at its rank, that are in no order and no update."""
        tensors, frozen = self.factors.at_home(state.subspaces[name]), self.frozen(state, name)
        if self._ranks is not None:
            tensors = self._ranks.sent(name, tensors, client)
        return sum(tensor.size for key, tensor in tensors.items() if key not in frozen)

    def train(self, state: ServerState, progress: Progress, slot: Slot, measure: bool = False) -> TrainOrder:
        """Order to train, or to ``measure``; constants that the client has are not sent again.

        Raises:
            RunError: the method broadcasts something other than float32 arrays.
        """
        name = state.assigned[slot.pair]
        subspace = self.factors.outgoing(name, state.subspaces[name], state.factors.get(name, {}), self.config.seed)
        if self._ranks is not None:
            subspace = self._ranks.sent(name, subspace, slot.client)
        frozen = self.frozen(state, name)
        tensors = {**state.shared, **subspace}
        extra = self.method.broadcast(state, slot.pair)
        for key, value in extra.items():
            if not isinstance(value, np.ndarray) or value.dtype != np.float32:
                raise RunError(f"method {self.method.name}: broadcast must give float32 arrays, {key!r} is not one")
        for prefix, more in ((EXTRA, extra), (FEDOPT, self._variates(state, name, frozen))):
            tensors |= {f"{prefix}{key}": value for key, value in more.items()}
        of_method = self._constants(state)
        constants = of_method | self._pieces(state, name)
        held = set(progress.constants.get(str(slot.client), []))
        for group in sorted(constants.keys() - held):
            tensors |= {f"{CONSTANT}{group}/{key}": value for key, value in constants[group].items()}
        return TrainOrder(
            config=self.text,
            stage=progress.stage,
            round=progress.round,
            client=slot.client,
            shard=slot.shard,
            tasks=list(slot.tasks),
            subspace=name,
            tensors=tensors,
            budget=slot.budget,
            offset=progress.offsets.get(slot.shard, 0),
            memory=progress.memories.get(str(slot.client), ""),
            constants=sorted(constants),
            keep=sorted(self._living(state, of_method, held - constants.keys())),
            frozen=frozen,
            brief=self._plain("brief", self.method.brief(state)),
            measure=measure,
            run=self.run,
            participations=self._planned(slot),
        )

    def _constants(self, state: ServerState) -> dict[str, Tensors]:
        """The method's constants, checked: a method of the user's own may return anything."""
        constants = self.method.constants(state)
        for group, tensors in constants.items():
            wrong = [n for n, t in tensors.items() if not isinstance(t, np.ndarray) or t.dtype != np.float32]
            if wrong or not tensors or not NAME.fullmatch(group):
                fault = f"{wrong[0]!r} is not one" if wrong else "it is empty" if not tensors else "name it otherwise"
                raise RunError(
                    f"method {self.method.name}: constants[{group!r}] must be float32 arrays under a name of letters, "
                    f"digits, '_', '.' and '-'; {fault}"
                )
        return constants

    def _pieces(self, state: ServerState, name: str) -> dict[str, Tensors]:
        """Constants of the rule for factors that belong to a subspace."""
        groups = self.factors.constants(name, state.subspaces[name], state.factors.get(name, {}))
        return {f"{KEPT}{group}": tensors for group, tensors in groups.items()}

    def _living(self, state: ServerState, of_method: dict[str, Tensors], groups: set[str]) -> set[str]:
        """Those of the groups that an order of this state, or of a later one, can name: to another subspace.

        The client must not remove them before the server has noted that it holds others instead: its update may be
        rejected or come too late, and then nothing is noted. Groups of an earlier stage are gone for good, because no
        name is used twice, and because a stage ends with a checkpoint before its evaluation and one after it: both
        checkpoints to which a run may go back have the new stage's constants.
        """
        if not groups:
            return groups
        return groups & {*of_method, *(group for name in state.subspaces for group in self._pieces(state, name))}

    def _variates(self, state: ServerState, name: str, frozen: list[str]) -> Tensors:
        """The federated optimiser's own tensors for a subspace and the shared tensors."""
        trained = {n: t for n, t in state.subspaces[name].items() if n not in frozen}
        of_subspace = self.fedopt.broadcast(trained, state.optimizers.get(f"subspace-{name}", {}))
        return of_subspace | self.fedopt.broadcast(state.shared, state.optimizers.get("shared", {}))

    def extra_shapes(self, state: ServerState, order: TrainOrder) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that the update to an order holds beside the trained ones."""
        if order.measure:
            return {f"{EXTRA}{n}": tuple(s) for n, s in self.method.measured_shapes(state).items()}
        trained = {n: t.shape for n, t in order.trained.items()}
        extra = {f"{EXTRA}{n}": tuple(s) for n, s in self.method.extra_shapes(state).items()}
        return extra | {f"{FEDOPT}{n}": tuple(s) for n, s in self.fedopt.extra_shapes(trained).items()}

    def reject_reason(self, update: ClientUpdate) -> str | None:
        """Why method or optimiser reject the tensors that an update holds beside the trained ones, or None."""
        extra, fedopt = (under(update.tensors, prefix) for prefix in (EXTRA, FEDOPT))
        return self.method.reject_reason(extra, update.examples) or self.fedopt.reject_reason(fedopt)

    def evaluates(self, stage: int) -> bool:
        """Whether the model is evaluated after a stage (``evaluation.when``, and :attr:`Method.last_stage_only`)."""
        count = self.stream.stage_count
        late = self.method.last_stage_only and stage < count - 1
        return not late and stage + 1 in self.config.evaluation.stages(count)

    def due(self, stage: int) -> list[str]:
        """Datasets to score after a stage."""
        return self.stream.evaluation(stage) if self.evaluates(stage) else []

    def untrained(self, stage: int) -> list[str]:
        """Data sets asked after a stage that were not trained by then; -1: before the first stage.

        With ``evaluation.unseen`` those of later stages, none for references without a sequence of stages; and
        ``evaluation.held_out``.
        """
        count, evaluation, begins = self.stream.stage_count, self.config.evaluation, stage < 0
        names: list[str] = []
        if evaluation.unseen and not self.method.last_stage_only and (begins or self.evaluates(stage)):
            trained = [] if begins else self.stream.evaluation(stage)
            names = [name for name in self.stream.evaluation(count - 1) if name not in trained]
        late = self.method.last_stage_only and 0 <= stage < count - 1
        asked = begins or (not late and stage + 1 in evaluation.stages(count, held_out=True))
        return [*names, *(self.stream.held_out if asked else ())]

    def evaluate(
        self, state: ServerState, progress: Progress, datasets: list[str], nodes: list[int], client: int | None = None
    ) -> Iterator[tuple[int, EvaluateOrder]]:
        """``(node, order)`` for every stretch of the datasets.

        With ``client`` it is to answer with factors of its own.

        The stretches of a data set go to one node after the other, the same in every stage, which then has
        their tokens already.
        """
        own = {} if client is None else {"client": client, "memory": progress.memories.get(str(client), "")}
        return self._stretches(datasets, nodes, *self.mixture(state, progress), own)

    def untouched(self, datasets: list[str], nodes: list[int]) -> Iterator[tuple[int, EvaluateOrder]]:
        """The same orders to the backbone as it came: no subspaces, no routing, its own projector."""
        return self._stretches(datasets, nodes, [], {}, {}, {})

    def _stretches(
        self,
        datasets: list[str],
        nodes: list[int],
        names: list[str],
        knowledge: dict[str, Any],
        tensors: Tensors,
        own: dict[str, Any],
    ) -> Iterator[tuple[int, EvaluateOrder]]:
        step = self.config.evaluation.stretch
        for number, dataset in enumerate(datasets):
            for at, first in enumerate(range(0, len(self.stream.test(dataset)), step)):
                order = EvaluateOrder(
                    config=self.text,
                    dataset=dataset,
                    first=first,
                    last=first + step,
                    task=self._task_of(dataset) if names else "",
                    names=names,
                    knowledge=knowledge,
                    tensors=tensors,
                    run=self.run,
                    **own,
                )
                yield nodes[(number + at) % len(nodes)], order

    def score(self, state: ServerState, progress: Progress, client: int) -> ScoreOrder:
        """Order to score a site's own tasks."""
        names, knowledge, tensors = self.mixture(state, progress)
        return ScoreOrder(
            config=self.text,
            client=client,
            stage=progress.stage,
            names=names,
            knowledge=knowledge,
            tensors=tensors,
            memory=progress.memories.get(str(client), "") if self.factors.per_client else "",
            run=self.run,
        )

    def mixture(self, state: ServerState, progress: Progress) -> tuple[list[str], dict[str, Any], Tensors]:
        """The subspaces in a fixed order, the method's routing knowledge about them, and the tensors of both."""
        names = list(state.subspaces)
        tensors = {f"shared/{k}": v for k, v in state.shared.items()}
        for i, name in enumerate(names):
            tensors |= {f"subspace-{i}/{k}": v for k, v in state.subspaces[name].items()}
        knowledge, known = self.method.knowledge(state)
        knowledge = self._plain("knowledge", knowledge)
        if self.method.needs_task_at_inference:
            knowledge = {**knowledge, "trained": progress.majority}
        return names, knowledge, tensors | {f"knowledge/{k}": v for k, v in known.items()}

    def _plain(self, hook: str, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return trees.json_of(value, hook)
        except TypeError as error:
            raise RunError(f"method {self.method.name}: {error}") from None

    def _task_of(self, dataset: str) -> str:
        """The true task's name, sent to references only: methods must not see it."""
        if not self.method.needs_task_at_inference:
            return ""
        tasks = enumerate(self.stream.tasks)
        return next((f"task-{t}" for t, names in tasks if dataset in names), "")  # a held-out one is of no task
