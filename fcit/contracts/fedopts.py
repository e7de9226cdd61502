"""The contract of federated optimisers, under every rule for averaging factors that they can be combined with.

As with methods, some checks apply to all and others belong to declared invariants
(:attr:`fcit.fedopt.base.FedOpt.invariants`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.contracts.toy import Toy, first_failure, require
from fcit.errors import ConfigError
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import INVARIANTS, FedOpt
from fcit.fedopt.factors import Separate
from fcit.io import trees
from fcit.io.trees import Tensors
from fcit.methods.base import Session

A, B, P, S = (
    "base_model.model.x.lora_A.weight",
    "base_model.model.x.lora_B.weight",
    "base_model.model.multi_modal_projector.linear_1.weight",
    "base_model.model.x.gate.scale",
)
#: B A is 2 x 3: no sum of such products has a rank above two, so `svd` cuts nothing off. What has no dimensions turns
#: into a number where arithmetic touches it.
SHAPES = {A: (2, 3), B: (2, 2), P: (2, 2), S: ()}
#: One update as the aggregator gets it: tensors, records, what the optimiser's client side returned.
Sent = tuple[Tensors, int, Tensors]


@dataclass
class FedOptCase:
    """A federated optimiser with its options and a rule for averaging factors, on one home of four tensors."""

    name: str
    factors: str = "separate"
    options: dict[str, Any] = field(default_factory=dict)
    fedopt: FedOpt = field(init=False)
    rule: Separate = field(init=False)
    old: Tensors = field(init=False)

    def __post_init__(self) -> None:
        config = RunConfig.model_validate({"fedopt": {"name": self.name, **self.options}, "factors": self.factors})
        self.fedopt = registry.resolve("fedopt", self.name)(config)
        self.rule = registry.resolve("factors", self.factors)()
        rng = np.random.default_rng(0)
        self.old = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

    @property
    def of_products(self) -> bool:
        """Whether the rule makes factors of a product, as `svd` does, and does not average them."""
        return not self.rule.stepwise

    def trained(self, turn: int) -> list[str]:
        """Names of the tensors that clients train in this turn and send back."""
        return sorted(set(self.start(self.old)) - set(self.rule.frozen(SHAPES, turn)))

    def start(self, tensors: Tensors) -> Tensors:
        """What clients begin a round with, given the server's tensors."""
        return self.rule.outgoing("0", tensors, {}, 0)

    def beside(self, tensors: Tensors) -> Any:
        """The product of what the rule adds to the model of a round as frozen."""
        added = self.rule.constants("0", tensors, {}).values()
        return sum((group[B] @ group[A] for group in added), np.zeros(()))

    def sent(self, tensors: Tensors, turn: int, size: float = 0.1) -> list[Sent]:
        """Updates of three clients that moved what is trained at random."""
        shapes = {n: tensors[n].shape for n in self.trained(turn)}
        announced = self.fedopt.extra_shapes(shapes)
        start, updates = self.start(tensors), []
        for client in range(3):
            rng = np.random.default_rng((turn, client))
            moved = {n: (start[n] + size * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()}
            extra = {n: (size * rng.normal(size=s)).astype(np.float32) for n, s in announced.items()}
            updates.append((moved, client + 1, extra))
        return updates

    def fold(self, tensors: Tensors, memory: dict[str, Any], updates: Iterable[Sent]) -> Tensors:
        """The server's tensors after these updates and, for a rule that keeps something, the end of the stage."""
        kept: dict[str, dict[str, Any]] = {}
        group = Aggregator(self.fedopt, self.rule, kept=kept).group("0", tensors, memory)
        for update in updates:
            group.add(*update)
        new = group.result()
        return self.rule.end_stage(new, kept["0"])[0] if kept else new

    def seen(self, tensors: Tensors) -> Tensors:
        """Tensors to compare: under rules that may rotate factors, as `svd`, the product B A in their place."""
        return {P: tensors[P], S: tensors[S], "B A": tensors[B] @ tensors[A]} if self.of_products else tensors


def _same(first: Tensors, second: Tensors, tolerance: float = 0.0) -> bool:
    return first.keys() == second.keys() and all(np.allclose(first[n], second[n], 0, tolerance) for n in first)


def _restored(memory: dict[str, Any]) -> dict[str, Any]:
    """State as restored from a checkpoint."""
    plain, tensors = trees.flatten(memory)
    return trees.restore(plain, {name: tensor.copy() for name, tensor in tensors.items()})


# --------------------------------------------------------------------------- checks of every optimiser


def is_described(case: FedOptCase) -> None:
    """It has a summary for `fcit list` and declares known invariants, at least one beside `finite`."""
    require(case.fedopt.summary, "set `summary`, one line for `fcit list`")
    strange = set(case.fedopt.invariants) - set(INVARIANTS)
    require(not strange, f"unknown invariants {sorted(strange)}; there are {sorted(INVARIANTS)}")
    require(set(case.fedopt.invariants) - {"finite"}, "declare at least one invariant beside `finite`")


def options_have_defaults(case: FedOptCase) -> None:
    """Options have defaults; unknown ones are refused."""
    type(case.fedopt).Options.model_validate({})
    try:
        type(case.fedopt).Options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("Options accepts an unknown key; derive it from fcit.config.Section")


def returns_what_it_was_given(case: FedOptCase) -> None:
    """step returns float32 tensors of the given names and shapes, and changes none in place."""
    memory: dict[str, Any] = {}
    tensors = dict(case.old)
    for turn in range(4):
        updates, before = case.sent(tensors, turn), {n: t.copy() for n, t in tensors.items()}
        new = case.fold(tensors, memory, updates)
        require(_same(tensors, before), "step changed the server's old tensors in place")
        require({n: t.shape for n, t in new.items()} == SHAPES, "step lost, added or reshaped a tensor")
        require(all(t.dtype == np.float32 for t in new.values()), "step must return float32")
        still = set(SHAPES) - set(case.trained(turn))
        require(all(new[n] is tensors[n] for n in still), f"step changed {sorted(still)}, which no client trained")
        tensors = new


def a_client_can_train(case: FedOptCase) -> None:
    """Client hooks: finite float32 arrays as announced, also after steps at rate 0; a memory that can be saved."""
    memory: dict[str, Any] = {}
    # The second time it remembers the first; then epochs of one step at rate 0 (`training.schedule: trainer`).
    for turn, rates in enumerate([(0.1, 0.05), (0.1, 0.05), (0.0,), (0.0,)]):
        toy = Toy({n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in case.old.items()})
        names = case.trained(turn)
        for name, parameter in toy.trainable.items():
            parameter.requires_grad_(name in names)
        received = case.fedopt.broadcast({n: case.old[n] for n in names}, {})
        require(all(t.dtype == np.float32 for t in received.values()), "broadcast must give float32 arrays")
        session = Session(
            backbone=toy,
            adapters=toy,
            client=0,
            shard="task-0",
            stage=0,
            round=turn,
            subspace="0",
            received=received,
            memory=memory,
        )
        case.fedopt.prepare(session)
        for lr in rates:
            session.lr = lr
            toy.loss([], None).backward()
            case.fedopt.on_gradients(session)
            with torch.no_grad():
                for name in names:
                    toy.trainable[name].sub_(toy.trainable[name].grad, alpha=lr)  # type: ignore[arg-type]
                    toy.trainable[name].grad = None
            case.fedopt.on_step(session)
        returned = case.fedopt.finish(session)
        require(all(np.isfinite(t).all() for t in returned.values()), f"finish is not finite after rates {rates}")
        got = {n: t.shape for n, t in returned.items() if t.dtype == np.float32}
        announced = case.fedopt.extra_shapes({n: SHAPES[n] for n in names})
        require(got == announced, f"finish returned {got} in float32, extra_shapes announces {announced}")
        still = set(SHAPES) - set(names)
        require(_same({n: toy.read()[n] for n in still}, {n: case.old[n] for n in still}), "a frozen tensor moved")
        memory = _restored(session.memory) if case.fedopt.remembers else {}


# --------------------------------------------------------------------------- declared invariants


def unchanged_updates(case: FedOptCase) -> None:
    """unchanged-updates: in the first round they leave the server's tensors (`svd` and the like: B A) unchanged."""
    updates: list[Sent] = [(tensors, n, {}) for tensors, n, _ in case.sent(case.old, 0, size=0.0)]
    new = case.fold(case.old, {}, updates)
    tolerance = 1e-6 if case.of_products or not case.rule.by_records else 0.0
    require(_same(case.seen(new), case.seen(case.old), tolerance), "unchanged updates changed the server's tensors")


def weighted_mean(case: FedOptCase) -> None:
    """weighted-mean: clients with 1 and 3 records moved by 1 and 2 move the server by (1 x 1 + 3 x 2) / 4."""
    if not case.rule.by_records:
        return
    names = case.trained(0)
    start = case.start(case.old)
    moved = [{n: (start[n] + shift).astype(np.float32) for n in names} for shift in (1, 2)]
    new = case.fold(case.old, {}, [(moved[0], 1, {}), (moved[1], 3, {})])
    wanted = {n: t + 1.75 if n in names else t for n, t in case.old.items()}
    if case.of_products:
        wanted = {
            P: wanted[P],
            S: wanted[S],
            "B A": case.beside(case.old) + (moved[0][B] @ moved[0][A] + 3 * moved[1][B] @ moved[1][A]) / 4,
        }
    require(_same(case.seen(new), wanted, 1e-5), "not the sample-weighted mean")


def state_only_moves_with_updates(case: FedOptCase) -> None:
    """state-only-moves-with-updates: an update of some tensors leaves the state of all others unchanged."""
    outcomes = []
    for extra_round in (False, True):
        memory: dict[str, Any] = {}
        tensors = case.old
        for turn in range(4):
            tensors = case.fold(tensors, memory, case.sent(tensors, turn))
            if extra_round and turn == 1:
                before = trees.flatten(_restored(memory))
                require(case.fold(tensors, memory, []) is tensors, "a round without updates changed the tensors")
                after = trees.flatten(memory)
                require(after[0] == before[0] and _same(after[1], before[1]), "a round without updates moved the state")
                alone = {P: (tensors[P] + 0.1).astype(np.float32)}
                tensors = case.fold(tensors, memory, [(alone, 1, {})])
        outcomes.append({n: tensors[n] for n in (A, B)})
    require(_same(outcomes[0], outcomes[1]), "a round that updated one tensor moved the state of the others")


def resumes(case: FedOptCase) -> None:
    """resumes: state saved and restored after every round gives the same bits."""
    outcomes = []
    for interrupted in (False, True):
        memory: dict[str, Any] = {}
        tensors = case.old
        for turn in range(4):
            tensors = case.fold(tensors, memory, case.sent(tensors, turn))
            memory = _restored(memory) if interrupted else memory
        outcomes.append(tensors)
    require(_same(outcomes[0], outcomes[1]), "the state does not come back from a checkpoint to the same bits")


def permutation(case: FedOptCase) -> None:
    """permutation: the order of clients changes only the last bits (`svd` and the like: of B A)."""
    outcomes = []
    for step in (1, -1):
        memory: dict[str, Any] = {}
        tensors = case.old
        for turn in range(2):
            tensors = case.fold(tensors, memory, case.sent(case.old, turn)[::step])
        outcomes.append(case.seen(tensors))
    require(_same(outcomes[0], outcomes[1], 1e-6), "the result depends on the order of the clients")


def finite(case: FedOptCase) -> None:
    """finite: zero, tiny and huge updates give finite numbers."""
    memory: dict[str, Any] = {}
    tensors = case.old
    for turn, size in enumerate((0.0, 1e-30, 0.0, 1e4, 0.0)):
        tensors = case.fold(tensors, memory, case.sent(tensors, turn, size))
        require(all(np.isfinite(t).all() for t in tensors.values()), f"updates of size {size} gave infinite numbers")


ALWAYS: list[Callable[[FedOptCase], None]] = [
    is_described,
    options_have_defaults,
    returns_what_it_was_given,
    a_client_can_train,
]
DECLARED: dict[str, Callable[[FedOptCase], None]] = {
    "unchanged-updates": unchanged_updates,
    "weighted-mean": weighted_mean,
    "state-only-moves-with-updates": state_only_moves_with_updates,
    "resumes": resumes,
    "permutation": permutation,
    "finite": finite,
}


def checks(name: str) -> list[Callable[[FedOptCase], None]]:
    """The checks that apply to an optimiser: general ones and those of declared invariants."""
    declared = registry.resolve("fedopt", name).invariants
    return [*ALWAYS, *(check for key, check in DECLARED.items() if key in declared)]


def fitting(name: str) -> list[str]:
    """Rules for averaging factors that a configuration may combine this optimiser with."""
    rules = []
    for factors in registry.FACTORS:
        try:
            configuration.parse({"fedopt": name, "factors": factors})
        except ConfigError:
            continue
        rules.append(factors)
    return rules


def conditions(name: str) -> tuple[str, list[str]]:
    """The setting that an optimiser is checked under, and its values: every way of averaging it goes with."""
    return "factors", fitting(name)


def check(name: str, options: dict[str, Any] | None = None) -> Iterator[tuple[str, str | None]]:
    """Run every check of an optimiser under all its conditions: what was checked, what is wrong (None: nothing)."""
    key, values = conditions(name)
    cases = [{key: value, "options": options or {}} for value in values]
    for test in checks(name):
        yield first_failure(test, lambda case: FedOptCase(name, **case), cases)
