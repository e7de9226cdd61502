"""What every method must keep to, checked on a toy federation: ``fcit check-method`` and our own tests.

Some promises hold for every method. Others are kept by most and declared in
:attr:`fcit.methods.base.Method.invariants`; a method that cannot keep one leaves it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fcit import registry, trees
from fcit.config import RunConfig
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import INVARIANTS, Factory, Method, Pair, ServerState, Session, Stats, Update

A, B, P = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight",
           "base_model.model.multi_modal_projector.linear_1.weight")  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {A: (2, 3), B: (3, 2)}
#: The first and the last pair belong to one task in every method.
PAIRS: list[Pair] = [(0, "task-0"), (1, "task-1"), (4, "task-0")]
_FEATURES = {PAIRS[0]: [4.0, 0.0], PAIRS[1]: [0.0, 2.0], PAIRS[2]: [8.0, 1.0]}
STATS = {pair: Stats(np.array(total), 4) for pair, total in _FEATURES.items()}


def require(condition: object, message: str) -> None:
    """A broken promise is an :class:`AssertionError`, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


@dataclass
class Toy:
    """Stands in for backbone and adapters: the loss is the sum of squares of what is trained."""

    trainable: dict[str, torch.nn.Parameter]

    def loss(self, examples: list[Any], features: Any) -> torch.Tensor:
        """A loss that needs no model."""
        return torch.stack([p.square().sum() for p in self.trainable.values()]).sum()

    def read(self) -> dict[str, np.ndarray]:
        """The trained tensors as arrays."""
        return {n: p.detach().numpy().copy() for n, p in self.trainable.items()}


@dataclass
class Case:
    """A method on a toy federation of three clients; two adapter tensors, projector shared or frozen."""

    name: str
    projector: str = "shared"
    method: Method = field(init=False)
    make: Factory = field(init=False)
    state: ServerState = field(init=False)
    aggregator: Aggregator = field(init=False)

    def __post_init__(self) -> None:
        config = RunConfig.model_validate({"method": {"name": self.name}})
        self.method = registry.resolve("method", self.name)(config)
        projector = {P: np.full((2, 2), 0.5, np.float32)} if self.projector == "shared" else {}
        self.make, self.aggregator = Factory(0, SHAPES, projector), Aggregator(FedAvg(config))
        self.state = self.fresh()

    def fresh(self) -> ServerState:
        """A server that has just given the three pairs their subspaces."""
        state = ServerState(shared=dict(self.make.projector))
        self.method.assign(state, list(PAIRS), self.stats, self.make)
        return state

    @property
    def stats(self) -> dict[Pair, Stats]:
        """What clients describe, if the method asks for it."""
        return dict(STATS) if self.method.needs_stats else {}

    def session(self, pair: Pair, memory: dict[str, Any]) -> Session:
        """A client's training of the toy tensors."""
        held = self.held(pair)
        sent = self.method.broadcast(self.state, pair)
        wrong = [n for n, t in sent.items() if not isinstance(t, np.ndarray) or t.dtype != np.float32]
        require(not wrong, f"broadcast must give float32 arrays; {wrong} are not")
        toy = Toy({n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in held.items()})
        return Session(toy, toy, pair[0], pair[1], 0, 0, self.state.assigned[pair], dict(sent), memory)

    def held(self, pair: Pair, state: ServerState | None = None) -> dict[str, np.ndarray]:
        """All tensors a client of this pair trains."""
        state = state or self.state
        return {**state.shared, **state.subspaces[state.assigned[pair]]}

    def update(self, pair: Pair, examples: int, shift: float) -> Update:
        """An update that moved every tensor by ``shift``."""
        tensors = {n: (t + shift).astype(np.float32) for n, t in self.held(pair).items()}
        extra = {n: np.zeros(shape, np.float32) for n, shape in self.method.extra_shapes(self.state).items()}
        return Update(pair[0], self.state.assigned[pair], examples, tensors, extra)

    def routed(self, features: np.ndarray) -> np.ndarray:
        """Mix for questions with these features ``(N, 2)``."""
        values, tensors = self.method.knowledge(self.state)
        if self.method.needs_task_at_inference:
            values = {**values, "task": "task-1"}
        return self.method.route(list(self.state.subspaces), (values, tensors), features)


# --------------------------------------------------------------------------- promises of every method


def is_described(case: Case) -> None:
    """It has a name, a line for `fcit list`, and knows the invariants it declares."""
    method = case.method
    require(method.name, "set `name`")
    require(method.summary, "set `summary`, one line for `fcit list`")
    require(method.pooled in ("", "task", "all"), f"pooled is {method.pooled!r}; allowed: '', 'task', 'all'")
    strange = set(method.invariants) - set(INVARIANTS)
    require(not strange, f"unknown invariants {sorted(strange)}; there are {sorted(INVARIANTS)}")
    require(method.invariants, "declare at least one of the optional invariants")
    known = [n for n in vars(Method) if not n.startswith("_")]
    for kind in type(method).__mro__[: type(method).__mro__.index(Method)]:
        for attribute, value in vars(kind).items():
            if attribute not in known and callable(value) and not attribute.startswith("_"):
                close = registry.nearest(attribute, known)
                require(not close, f"{attribute!r} is no hook{close}; name helpers with a leading underscore")


def options_have_defaults(case: Case) -> None:
    """Options can be left out; unknown ones are refused."""
    type(case.method).Options.model_validate({})
    try:
        type(case.method).Options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("Options accepts an unknown key; derive it from fcit.config.Section")


def assign_gives_every_pair_a_subspace(case: Case) -> None:
    """Every pair of a round has a subspace of the right shapes, float32, starting with B = 0 and A != 0."""
    require(set(case.state.assigned) == set(PAIRS), "assign left a pair without a subspace")
    for pair in PAIRS:
        tensors = case.state.subspaces[case.state.assigned[pair]]
        require({n: tensors[n].shape for n in SHAPES} == SHAPES, "a subspace lacks tensors or has other shapes")
        require(all(t.dtype == np.float32 for t in tensors.values()), "a subspace is not float32")
        require(not tensors[B].any() and tensors[A].any(), "a new subspace must be A != 0, B = 0: use `make(name)`")


def assign_is_stable(case: Case) -> None:
    """Asking again changes nothing."""
    assigned, before = dict(case.state.assigned), dict(case.state.subspaces)
    case.method.assign(case.state, list(PAIRS), case.stats, case.make)
    require(case.state.assigned == assigned, "a second assign moved a pair")
    same = len(case.state.subspaces) == len(before) and all(case.state.subspaces[n] is t for n, t in before.items())
    require(same, "a second assign made or replaced a subspace")


def assign_ignores_the_order_of_slots(case: Case) -> None:
    """The round's order of clients does not matter."""
    other = ServerState(shared=dict(case.make.projector))
    case.method.assign(other, PAIRS[::-1], dict(reversed(case.stats.items())), case.make)
    require(other.assigned == case.state.assigned, "assign depends on the order of the pairs")


def every_tensor_has_one_home(case: Case) -> None:
    """What a client trains is either its subspace's or shared, not both, and nothing is missing."""
    for pair in PAIRS:
        require(set(case.held(pair)) == set(SHAPES) | set(case.make.projector), "a client lacks or doubles tensors")
        both = set(case.state.shared) & set(case.state.subspaces[case.state.assigned[pair]])
        require(not both, f"{sorted(both)} are both shared and in a subspace")


def aggregate_reads_once_and_repeats(case: Case) -> None:
    """Updates come as an iterator, once; the same updates give the same bits."""
    other = case.fresh()
    updates = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in PAIRS]
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    case.method.aggregate(other, iter(updates), Aggregator(FedAvg(case.method.config)))
    for pair in PAIRS:
        first, second = case.held(pair), case.held(pair, other)
        require(all(np.array_equal(first[n], second[n]) for n in first), "aggregating twice gives different bits")


def state_can_be_saved(case: Case) -> None:
    """What the server remembers is JSON values and arrays, and comes back equal."""
    case.method.aggregate(case.state, iter([case.update(pair, 2, 0.1) for pair in PAIRS]), case.aggregator)
    case.method.end_stage(case.state, 0)
    plain, tensors = trees.flatten(case.state.memory)
    again, _ = trees.flatten(trees.restore(plain, tensors))
    require(again == plain, "the server's memory changes when it is saved and read")


def mix_has_one_weight_per_subspace(case: Case) -> None:
    """route returns finite float32 weights of at least zero, ``(questions, subspaces)``."""
    mix = case.routed(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    require(mix.shape == (5, len(case.state.subspaces)), f"route returned {mix.shape}")
    require(mix.dtype == np.float32 and np.isfinite(mix).all(), "route must return finite float32 weights")
    require((mix >= 0).all(), "route returned a negative weight")


def route_is_per_sample(case: Case) -> None:
    """A question's mix does not depend on the others of its batch."""
    features = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    singles = np.stack([case.routed(row[None])[0] for row in features])
    require(np.allclose(case.routed(features), singles, atol=1e-6), "route depends on the batch")


def route_is_not_told_the_task(case: Case) -> None:
    """Only references may know the task; knowledge does not smuggle it in."""
    parameters = list(inspect.signature(case.method.route).parameters)
    require(parameters == ["names", "knowledge", "features"], f"route takes {parameters}")
    values, tensors = case.method.knowledge(case.state)
    require("task" not in values, "knowledge names a task")
    require(all(isinstance(t, np.ndarray) for t in tensors.values()), "knowledge's second part holds arrays")


def describe_adds_up(case: Case) -> None:
    """Statistics of two halves are the statistics of the whole."""
    features = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    whole = case.method.describe(features)
    parts = [case.method.describe(features[:2]), case.method.describe(features[2:])]
    require(whole.count == 5 == sum(p.count for p in parts), "describe miscounts")
    require(np.allclose(whole.total, parts[0].total + parts[1].total), "describe does not add up")


def a_client_can_train(case: Case) -> None:
    """Client hooks: a scalar loss with gradients, extras as announced (float32), a memory that can be saved."""
    if not case.method.trains:
        return
    shapes = {n: tuple(s) for n, s in case.method.extra_shapes(case.state).items()}
    memory: dict[str, Any] = {}
    for _ in range(2):  # the second time it remembers the first
        session = case.session(PAIRS[0], memory)
        case.method.prepare(session)
        for _ in range(2):
            loss = case.method.loss(session, [], torch.zeros(0))
            good = isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad
            require(good, f"loss must return a scalar tensor with gradients, got {type(loss).__name__}")
            loss.backward()
            case.method.on_gradients(session)
            with torch.no_grad():
                for parameter in session.adapters.trainable.values():
                    parameter -= 0.1 * (torch.zeros(()) if parameter.grad is None else parameter.grad)
                    parameter.grad = None
            case.method.on_step(session)
        extra = case.method.finish(session)
        got = {n: getattr(t, "shape", None) for n, t in extra.items()}
        require(got == shapes, f"finish returned {got}, extra_shapes announces {shapes}")
        require(all(t.dtype == np.float32 for t in extra.values()), "finish must return float32 arrays")
        plain, tensors = trees.flatten(session.memory)
        memory = trees.restore(plain, tensors) if case.method.remembers else {}


# --------------------------------------------------------------------------- promises a method may leave out


def unchanged_updates(case: Case) -> None:
    """Updates that moved nothing move nothing on the server."""
    before = {pair: case.held(pair) for pair in PAIRS}
    case.method.aggregate(case.state, iter([case.update(pair, 3, 0.0) for pair in PAIRS]), case.aggregator)
    for pair in PAIRS:
        after = case.held(pair)
        same = all(np.array_equal(after[n], t) and after[n].dtype == np.float32 for n, t in before[pair].items())
        require(same, "unchanged updates changed the server's tensors")


def weighted_mean(case: Case) -> None:
    """Two clients of one task, 1 and 3 records, moved by 1 and 2: the server moves by (1 x 1 + 3 x 2) / 4."""
    before = case.held(PAIRS[0])
    updates = [case.update(PAIRS[0], 1, 1.0), case.update(PAIRS[2], 3, 2.0)]
    require(updates[0].subspace == updates[1].subspace, "two clients of one task got different subspaces")
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    after = case.held(PAIRS[0])
    require(all(np.allclose(after[n], t + 1.75, atol=1e-6) for n, t in before.items()), "not the sample-weighted mean")


def others_untouched(case: Case) -> None:
    """An update of one subspace leaves the others as they are."""
    own = case.state.assigned[PAIRS[1]]
    others = {n: dict(t) for n, t in case.state.subspaces.items() if n != own}
    case.method.aggregate(case.state, iter([case.update(PAIRS[1], 2, 1.0)]), case.aggregator)
    for name, tensors in others.items():
        same = all(np.array_equal(case.state.subspaces[name][k], v) for k, v in tensors.items())
        require(same, f"an update of subspace {own} changed subspace {name}")


def mix_sums_to_one(case: Case) -> None:
    """The weights of a question sum to one (or to zero: nobody speaks)."""
    sums = case.routed(np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)).sum(axis=1)
    require(np.all(np.isclose(sums, 1, atol=1e-6) | (sums == 0)), f"weights sum to {sums}")


ALWAYS: list[Callable[[Case], None]] = [
    is_described,
    options_have_defaults,
    assign_gives_every_pair_a_subspace,
    assign_is_stable,
    assign_ignores_the_order_of_slots,
    every_tensor_has_one_home,
    aggregate_reads_once_and_repeats,
    state_can_be_saved,
    mix_has_one_weight_per_subspace,
    route_is_per_sample,
    route_is_not_told_the_task,
    describe_adds_up,
    a_client_can_train,
]
DECLARED: dict[str, Callable[[Case], None]] = {
    "unchanged-updates": unchanged_updates,
    "weighted-mean": weighted_mean,
    "others-untouched": others_untouched,
    "mix-sums-to-one": mix_sums_to_one,
}


def checks(name: str) -> list[Callable[[Case], None]]:
    """The checks that apply to a method: everybody's and the declared ones."""
    declared = registry.resolve("method", name).invariants
    return [*ALWAYS, *(check for key, check in DECLARED.items() if key in declared)]


def check(name: str) -> Iterator[tuple[str, str | None]]:
    """Run every check of a method with the projector shared and frozen: what was checked, what is wrong."""
    for test in checks(name):
        problem = None
        for projector in ("shared", "frozen"):
            try:
                test(Case(name, projector))
            except Exception as error:  # noqa: BLE001  (a stranger's method may fail in any way; the reason is shown)
                text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                problem = f"{text} (projector {projector})"
                break
        yield (test.__doc__ or test.__name__).split("\n")[0], problem
