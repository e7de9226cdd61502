import inspect

import numpy as np
import pytest
from pydantic import ValidationError

from fcit import registry
from fcit.config import RunConfig, parse
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Factory, Method, ServerState, Stats, Update

A, B, P = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight",
           "base_model.model.multi_modal_projector.linear_1.weight")  # fmt: skip
SHAPES = {A: (2, 3), B: (3, 2)}
PAIRS = [(0, "task-0"), (1, "task-1"), (4, "task-0")]
FEATURES = {PAIRS[0]: [4.0, 0.0], PAIRS[1]: [0.0, 2.0], PAIRS[2]: [8.0, 1.0]}
STATS = {pair: Stats(np.array(total), 4) for pair, total in FEATURES.items()}


@pytest.fixture(params=sorted(registry.METHODS))
def method(request) -> Method:
    return registry.resolve("method", request.param)(RunConfig(method={"name": request.param}))


@pytest.fixture(params=["shared", "frozen"])
def make(request) -> Factory:
    projector = {P: np.full((2, 2), 0.5, np.float32)} if request.param == "shared" else {}
    return Factory(0, SHAPES, projector)


@pytest.fixture
def state(method, make) -> ServerState:
    state = ServerState(shared=dict(make.projector))
    method.assign(state, PAIRS, STATS, make)
    return state


@pytest.fixture
def fedopt() -> FedAvg:
    return FedAvg(RunConfig())


def update(state: ServerState, pair, examples: int, shift: float) -> Update:
    name = state.assigned[pair]
    tensors = {**state.shared, **state.subspaces[name]}
    return Update(pair[0], name, examples, {k: (v + shift).astype(np.float32) for k, v in tensors.items()})


def held(state: ServerState, pair) -> dict[str, np.ndarray]:
    return {**state.shared, **state.subspaces[state.assigned[pair]]}


def test_is_described(method):
    assert isinstance(method, Method) and method.summary
    assert method.name == method.config.method["name"]
    assert method.pooled in ("", "task", "all")


def test_options_have_defaults_and_refuse_strangers(method):
    parse({"method": method.name})
    type(method).Options.model_validate({})
    with pytest.raises(ValidationError):
        type(method).Options.model_validate({"no_such_option": 1})


def test_assign_gives_every_pair_a_subspace(state):
    assert set(state.assigned) == set(PAIRS)
    for pair in PAIRS:
        tensors = state.subspaces[state.assigned[pair]]
        assert {n: tensors[n].shape for n in SHAPES} == SHAPES
        assert all(t.dtype == np.float32 for t in tensors.values())
        assert not tensors[B].any() and tensors[A].any()


def test_assign_is_stable(method, make, state):
    assigned, subspaces = dict(state.assigned), dict(state.subspaces)
    method.assign(state, PAIRS, STATS, make)
    assert state.assigned == assigned
    assert all(state.subspaces[n] is t for n, t in subspaces.items()) and len(state.subspaces) == len(subspaces)


def test_assign_does_not_depend_on_slot_order(method, make, state):
    other = ServerState(shared=dict(make.projector))
    method.assign(other, PAIRS[::-1], dict(reversed(STATS.items())), make)
    assert other.assigned == state.assigned


def test_every_trained_tensor_has_one_home(state, make):
    for pair in PAIRS:
        assert set(held(state, pair)) == set(SHAPES) | set(make.projector)
        assert not set(state.shared) & set(state.subspaces[state.assigned[pair]])


def test_aggregate_of_unchanged_updates_changes_nothing(method, state, fedopt):
    before = {pair: held(state, pair) for pair in PAIRS}
    method.aggregate(state, iter([update(state, pair, 3, 0.0) for pair in PAIRS]), fedopt)
    for pair in PAIRS:
        after = held(state, pair)
        assert all(np.array_equal(after[n], before[pair][n]) and after[n].dtype == np.float32 for n in before[pair])


def test_aggregate_is_the_weighted_mean_of_a_subspace(method, state, fedopt):
    # the first and the last client belong together in every method: (1 * 1 + 3 * 2) / 4
    before = held(state, PAIRS[0])
    updates = [update(state, PAIRS[0], 1, 1.0), update(state, PAIRS[2], 3, 2.0)]
    assert updates[0].subspace == updates[1].subspace
    method.aggregate(state, iter(updates), fedopt)
    after = held(state, PAIRS[0])
    for name in before:
        assert after[name] == pytest.approx(before[name] + 1.75, abs=1e-6)


def test_aggregate_leaves_other_subspaces_alone(method, state, fedopt):
    own = state.assigned[PAIRS[1]]
    others = {n: dict(t) for n, t in state.subspaces.items() if n != own}
    method.aggregate(state, iter([update(state, PAIRS[1], 2, 1.0)]), fedopt)
    for name, tensors in others.items():
        assert all(np.array_equal(state.subspaces[name][k], v) for k, v in tensors.items())


def test_aggregate_reads_its_updates_once_and_keeps_none(method, make, state, fedopt):
    other = ServerState(shared=dict(make.projector))
    method.assign(other, PAIRS, STATS, make)
    updates = [update(state, pair, pair[0] + 1, 0.1 * pair[0]) for pair in PAIRS]
    method.aggregate(state, iter(updates), fedopt)
    # the order of arrival is undone by sorting, and then the bits are the same
    method.aggregate(other, iter(sorted([updates[2], updates[0], updates[1]], key=lambda u: u.client)), fedopt)
    for pair in PAIRS:
        assert all(np.array_equal(held(state, pair)[n], t) for n, t in held(other, pair).items())


def routed(method: Method, state: ServerState, features: np.ndarray) -> np.ndarray:
    values, tensors = method.knowledge(state)
    if method.needs_task_at_inference:
        values = {**values, "task": "task-1"}
    return method.route(list(state.subspaces), (values, tensors), features)


def test_route_gives_weights(method, state):
    mix = routed(method, state, np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    assert mix.shape == (5, len(state.subspaces)) and mix.dtype == np.float32
    assert (mix >= 0).all()
    assert all(total == pytest.approx(1, abs=1e-6) or total == 0 for total in mix.sum(axis=1))


def test_route_is_per_sample(method, state):
    features = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    singles = [routed(method, state, row[None])[0] for row in features]
    assert routed(method, state, features) == pytest.approx(np.stack(singles), abs=1e-6)


def test_route_is_not_told_the_task(method):
    assert list(inspect.signature(method.route).parameters) == ["names", "knowledge", "features"]


def test_knowledge_names_no_task_by_itself(method, state):
    values, tensors = method.knowledge(state)
    assert "task" not in values and all(isinstance(t, np.ndarray) for t in tensors.values())


@pytest.mark.parametrize("name", [n for n in registry.METHODS if registry.resolve("method", n).needs_task_at_inference])
def test_a_task_that_was_never_trained_gets_no_weight(name):
    told = registry.resolve("method", name)(RunConfig(method={"name": name}))
    assert not told.route(["task-0", "task-1"], ({"task": "task-9"}, {}), np.ones((2, 2), np.float32)).any()


def test_describe_adds_up(method):
    features = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    whole, parts = method.describe(features), [method.describe(features[:2]), method.describe(features[2:])]
    assert whole.count == 5 == sum(p.count for p in parts)
    assert whole.total == pytest.approx(sum(p.total for p in parts))


def test_factory_depends_on_seed_and_name_only():
    first, other = Factory(0, SHAPES)("3"), Factory(1, SHAPES)("3")
    again = Factory(0, dict(reversed(SHAPES.items())))("3")
    assert np.array_equal(first[A], again[A])
    assert not np.array_equal(first[A], other[A])
    assert not np.array_equal(first[A], Factory(0, SHAPES)("4")[A])
    wide = Factory(0, {A: (100, 100)})("0")[A]
    assert wide.std() == pytest.approx(0.01, rel=0.05) and abs(wide.mean()) < 1e-3
