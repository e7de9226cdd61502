"""What every method must keep to, checked on a toy federation: ``fcit check-method`` and our own tests.

Some promises hold for every method. Others are kept by most and declared in
:attr:`fcit.methods.base.Method.invariants`; a method that cannot keep one leaves it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from pydantic import ValidationError

from fcit import registry, trees
from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import INVARIANTS, Factory, Method, Pair, ServerState, Session, Stats, Update
from fcit.models.layout import KEYS, PROMPTS, Layout

EXAMPLES = [Encoded((1, 2), (3,), f"{i}.png") for i in range(3)]
A, B, P = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight",
           "base_model.model.multi_modal_projector.linear_1.weight")  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {A: (2, 3), B: (3, 2)}
#: The first and the last pair belong to one task in every method.
PAIRS: list[Pair] = [(0, "task-0"), (1, "task-1"), (4, "task-0")]
_FEATURES = {PAIRS[0]: [4.0, 0.0], PAIRS[1]: [0.0, 2.0], PAIRS[2]: [8.0, 1.0]}
STATS = {pair: Stats(np.array(total), 4) for pair, total in _FEATURES.items()}


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Tensors of one subspace on a model of one layer, three wide."""
    if layout.pool:
        return {KEYS: (layout.pool, 2), PROMPTS: (layout.pool, layout.length, 3)}
    if layout.experts:
        gate = A.replace("lora_A", "lora_gate")
        return {A: (layout.experts, 3), B: (3, layout.experts), gate: (layout.experts, 3)}
    return dict(SHAPES)


def require(condition: object, message: str) -> None:
    """A broken promise is an :class:`AssertionError`, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


@dataclass
class Toy:
    """Stands in for backbone and adapters: the loss is the sum of squares of what is trained."""

    trainable: dict[str, torch.nn.Parameter]

    def loss(self, examples: list[Any], features: Any, prefix: Any = None) -> torch.Tensor:
        """A loss that needs no model."""
        total = torch.stack([p.square().sum() for p in self.trainable.values()]).sum()
        return total if prefix is None else total + prefix.square().sum()

    def answer_logits(self, examples: list[Any], features: Any, prefix: Any = None) -> tuple[torch.Tensor, ...]:
        """Logits of three words at one position each, and the words wanted."""
        return self.loss(examples, features, prefix) * torch.ones(len(examples), 3), torch.zeros(len(examples)).long()

    def vision_features(self, root: Any, images: list[str]) -> torch.Tensor:
        """Features of no meaning."""
        return torch.zeros(len(images), 1, 1)

    @contextmanager
    def resting(self) -> Iterator[list[torch.nn.Parameter]]:
        """As :meth:`fcit.models.adapters.Adapters.resting`."""
        yield list(self.trainable.values())

    @contextmanager
    def other(self) -> Iterator[None]:
        """As :meth:`fcit.models.adapters.Adapters.other`."""
        with torch.no_grad():
            yield

    def load_other(self, tensors: dict[str, np.ndarray]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.load_other`."""
        require(set(tensors) == set(self.trainable), "load_other needs a subspace and the projector, if it is trained")

    def put_behind(self, subspaces: list[dict[str, np.ndarray]]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.put_behind`."""
        require(all(set(self.trainable) >= set(s) for s in subspaces), "put_behind needs subspaces")

    def read(self) -> dict[str, np.ndarray]:
        """The trained tensors as arrays."""
        return {n: p.detach().numpy().copy() for n, p in self.trainable.items()}


def method_of(name: str, options: dict[str, Any] | None = None) -> Method:
    """A method with these options, all else as it comes."""
    config = RunConfig.model_validate({"method": {"name": name, **(options or {})}})
    return registry.resolve("method", name)(config)


@dataclass
class Case:
    """A method with its options on a toy federation of three clients, under a policy for the projector."""

    name: str
    projector: str = "shared"
    options: dict[str, Any] = field(default_factory=dict)
    method: Method = field(init=False)
    make: Factory = field(init=False)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    state: ServerState = field(init=False)
    aggregator: Aggregator = field(init=False)

    def __post_init__(self) -> None:
        self.method = method_of(self.name, self.options)
        projector = {P: np.full((2, 2), 0.5, np.float32)}
        own = projector if self.projector == "per_subspace" else {}
        self.shapes = shapes_of(self.method.layout) | {n: t.shape for n, t in own.items()}
        self.make = Factory(0, self.shapes, projector if self.projector == "shared" else {}, given=own)
        self.aggregator = Aggregator(FedAvg(self.method.config))
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

    def session(self, pair: Pair, memory: dict[str, Any], last_round: bool = False) -> Session:
        """A client's training of the toy tensors."""
        sent, constants = self.method.broadcast(self.state, pair), self.method.constants(self.state)
        for hook, arrays in (("broadcast", sent), *((f"constants[{n!r}]", c) for n, c in constants.items())):
            wrong = [n for n, t in arrays.items() if not isinstance(t, np.ndarray) or t.dtype != np.float32]
            require(not wrong, f"{hook} must give float32 arrays; {wrong} are not")
        require(not any("/" in n for n in constants), "names of constants must not hold '/'")
        toy = Toy({n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in self.held(pair).items()})
        return Session(
            toy, toy, pair[0], pair[1], self.state.stage, self.state.round, self.state.assigned[pair], dict(sent),
            memory, constants, EXAMPLES, np.eye(3, 2, dtype=np.float32), None, 0, last_round, [0, 2], 0.1,
        )  # fmt: skip

    def train(self, pair: Pair, memory: dict[str, Any], last_round: bool = False) -> tuple[Session, Update]:
        """Two steps of plain descent through every client hook; the update as the server would read it."""
        method, session = self.method, self.session(pair, memory, last_round)
        shapes = {n: tuple(s) for n, s in method.extra_shapes(self.state).items()}
        method.prepare(session)
        for _ in range(2):
            loss = method.loss(session, EXAMPLES[:2], torch.zeros(2, 1, 1))
            good = isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad
            require(good, f"loss must return a scalar tensor with gradients, got {type(loss).__name__}")
            loss.backward()
            method.on_gradients(session)
            with torch.no_grad():
                for parameter in session.adapters.trainable.values():
                    parameter -= 0.1 * (torch.zeros(()) if parameter.grad is None else parameter.grad)
                    parameter.grad = None
            method.on_step(session)
        extra = method.finish(session)
        got = {n: getattr(t, "shape", None) for n, t in extra.items()}
        require(got == shapes, f"finish returned {got}, extra_shapes announces {shapes}")
        require(all(t.dtype == np.float32 for t in extra.values()), "finish must return float32 arrays")
        tensors = session.adapters.read()
        require(all(np.isfinite(t).all() for t in tensors.values()), "training gave values that are not finite")
        return session, Update(pair[0], session.subspace, len(EXAMPLES), tensors, extra)

    def held(self, pair: Pair, state: ServerState | None = None) -> dict[str, np.ndarray]:
        """All tensors a client of this pair trains."""
        state = state or self.state
        return {**state.shared, **state.subspaces[state.assigned[pair]]}

    def update(self, pair: Pair, examples: int, shift: float) -> Update:
        """An update that moved every tensor by ``shift``."""
        tensors = {n: (t + shift).astype(np.float32) for n, t in self.held(pair).items()}
        extra = {n: np.ones(shape, np.float32) for n, shape in self.method.extra_shapes(self.state).items()}
        return Update(pair[0], self.state.assigned[pair], examples, tensors, extra)

    def routed(self, features: np.ndarray) -> np.ndarray:
        """Mix for questions with these features ``(N, 2)``."""
        values, tensors = self.method.knowledge(self.state)
        if self.method.needs_task_at_inference:
            values = {**values, "task": "task-1", "trained": {p[1]: name for p, name in self.state.assigned.items()}}
        return self.method.route(list(self.state.subspaces), (values, tensors), features)


# --------------------------------------------------------------------------- promises of every method


def is_described(case: Case) -> None:
    """It has a name, a line for `fcit list`, and knows the invariants it declares."""
    method = case.method
    require(method.name, "set `name`")
    require(method.summary, "set `summary`, one line for `fcit list`")
    require(method.pooled in ("", "task", "all"), f"pooled is {method.pooled!r}; allowed: '', 'task', 'all'")
    kinds = ("text", "image", "both")
    require(method.identity in kinds, f"identity is {method.identity!r}; allowed: {', '.join(kinds)}")
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
    """Every pair of a round has a subspace of the right shapes, float32, as `make(name)` gives it."""
    require(set(case.state.assigned) == set(PAIRS), "assign left a pair without a subspace")
    for pair in PAIRS:
        tensors = case.state.subspaces[case.state.assigned[pair]]
        shapes = {n: tensors[n].shape for n in case.shapes}
        require(shapes == case.shapes, f"a subspace lacks tensors or has other shapes: {shapes}")
        require(all(t.dtype == np.float32 for t in tensors.values()), "a subspace is not float32")


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
        whole = set(case.shapes) | set(case.make.projector)
        require(set(case.held(pair)) == whole, "a client lacks or doubles tensors")
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
    memory: dict[str, Any] = {}
    for _ in range(2):  # the second time it remembers the first
        session, _ = case.train(PAIRS[0], memory)
        plain, tensors = trees.flatten(session.memory)
        memory = trees.restore(plain, tensors) if case.method.remembers else {}


def a_second_stage_follows(case: Case) -> None:
    """Two whole stages: what the first left behind reaches the second's clients and can be saved."""
    if not case.method.trains:
        return
    memories: dict[Pair, dict[str, Any]] = {pair: {} for pair in PAIRS}
    for stage in range(2):
        case.state.stage, case.state.round = stage, case.method.config.federation.rounds - 1
        case.method.assign(case.state, list(PAIRS), case.stats, case.make)
        trained = {pair: case.train(pair, memories[pair], last_round=True) for pair in PAIRS}
        case.method.aggregate(case.state, iter([update for _, update in trained.values()]), case.aggregator)
        before = {n: dict(tensors) for n, tensors in case.method.constants(case.state).items()}
        case.method.end_stage(case.state, stage)
        plain, tensors = trees.flatten(case.state.memory)
        case.state.memory = trees.restore(plain, tensors)
        after = case.method.constants(case.state)
        same = all(np.array_equal(t, after[n][k]) for n in before.keys() & after.keys() for k, t in before[n].items())
        require(same, "a group of constants changed under the same name")
        if case.method.remembers:
            memories = {pair: session.memory for pair, (session, _) in trained.items()}
    route = case.routed(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))
    require(route.shape == (3, len(case.state.subspaces)), "route forgets the subspaces of a later stage")


def clients_can_come_in_any_order(case: Case) -> None:
    """The order of the updates matters in the last bits only."""
    other = case.fresh()
    updates = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in PAIRS]
    again = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in reversed(PAIRS)]
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    case.method.aggregate(other, iter(again), case.aggregator)
    for pair in PAIRS:
        first, second = case.held(pair), case.held(pair, other)
        same = all(np.allclose(first[n], second[n], atol=1e-6) for n in first)
        require(same, "clients in another order give other tensors")


# --------------------------------------------------------------------------- promises a method may leave out


def starts_at_base(case: Case) -> None:
    """A new subspace changes nothing: B = 0, and A != 0 so that it can learn."""
    for tensors in case.state.subspaces.values():
        require(not tensors[B].any() and tensors[A].any(), "a new subspace must be A != 0, B = 0: use `make(name)`")


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
    a_second_stage_follows,
    clients_can_come_in_any_order,
]
DECLARED: dict[str, Callable[[Case], None]] = {
    "starts-at-base": starts_at_base,
    "unchanged-updates": unchanged_updates,
    "weighted-mean": weighted_mean,
    "others-untouched": others_untouched,
    "mix-sums-to-one": mix_sums_to_one,
}


#: Policies of ``adapter.projector``.
PROJECTORS = ("shared", "frozen", "per_subspace")


def variants(name: str) -> list[dict[str, Any]]:
    """Options under which a method is checked: as it comes, and every value of every choice and switch."""
    found: list[dict[str, Any]] = [{}]
    for key, option in registry.resolve("method", name).Options.model_fields.items():
        values = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
        values = (False, True) if option.annotation is bool else values
        found += [{key: value} for value in values if value != option.default]
    return found


def checks(name: str, options: dict[str, Any] | None = None) -> list[Callable[[Case], None]]:
    """The checks that apply to a method with these options: everybody's and the declared ones."""
    declared = method_of(name, options).invariants
    return [*ALWAYS, *(check for key, check in DECLARED.items() if key in declared)]


def check(name: str, options: dict[str, Any] | None = None) -> Iterator[tuple[str, str | None]]:
    """Run every check of a method under every projector policy: what was checked, what is wrong."""
    for test in checks(name, options):
        problem = None
        for projector in PROJECTORS:
            try:
                test(Case(name, projector, options or {}))
            except Exception as error:  # noqa: BLE001  (a stranger's method may fail in any way; the reason is shown)
                text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                problem = f"{text} (projector {projector})"
                break
        yield (test.__doc__ or test.__name__).split("\n")[0], problem
