"""Server momentum and the adaptive optimisers: by hand, and against Flower's own strategies."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy

from fcit import registry
from fcit.config import RunConfig
from fcit.fedopt.aggregator import Aggregator
from fcit.methods.base import arrays


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def make(name: str, **options):
    return registry.resolve("fedopt", name)(RunConfig(fedopt={"name": name, **options}))


def walk(fedopt, deltas: list[float]) -> list[float]:
    """Where a single number, starting from 0, is after each of these mean updates."""
    memory, theta, path = {}, f32(0), []
    for delta in deltas:
        theta = fedopt.step({"a": theta}, {"a": theta + f32(delta)}, memory)["a"]
        path.append(float(theta[0]))
    return path


def test_fedavgm_by_hand():
    # m = 1, then 0.5 + 1 = 1.5, then 0.75 + 0 = 0.75; steps of 2 m.
    assert walk(make("fedavgm", beta=0.5, server_learning_rate=2.0), [1, 1, 0]) == [2.0, 5.0, 6.5]


def test_fedadagrad_by_hand():
    # v = 9, then 9 + 16 = 25: steps 0.1 x 3 / (3 + 1) and 0.1 x 4 / (5 + 1).
    assert walk(make("fedadagrad", eta=0.1, tau=1.0), [3, 4]) == pytest.approx([0.075, 0.075 + 0.4 / 6])


def test_fedadam_by_hand():
    # beta_1 = beta_2 = 1/2. t = 1: m = 1, v = 2, rate = sqrt(3/4) / (3/4), step rate x 1 / (sqrt 2 + 1).
    # t = 2: m = 1/2 + 1 = 3/2, v = 1 + 2 = 3, rate = sqrt(7/8) / (7/8), step rate x 1.5 / (sqrt 3 + 1).
    first = (0.75**0.5 / 0.75) / (2**0.5 + 1)
    second = (0.875**0.5 / 0.875) * 1.5 / (3**0.5 + 1)
    path = walk(make("fedadam", eta=1.0, tau=1.0, beta_1=0.5, beta_2=0.5), [2, 2])
    assert path == pytest.approx([first, first + second])


def test_fedyogi_by_hand():
    # v = 0 - 1/2 x 4 x sign(0 - 4) = 2, then Delta^2 = 1 < 2: v = 2 - 1/2 = 1.5; m = 1, then 1/2 + 1/2 = 1.
    path = walk(make("fedyogi", eta=1.0, tau=1.0, beta_1=0.5, beta_2=0.5), [2, 1])
    assert path == pytest.approx([1 / (2**0.5 + 1), 1 / (2**0.5 + 1) + 1 / (1.5**0.5 + 1)])


def test_v0_of_the_paper():
    # v = tau^2 + Delta^2 = 16 + 9 = 25: step 1 x 3 / (5 + 4).
    assert walk(make("fedadagrad", eta=1.0, tau=4.0, v0="tau2"), [3]) == pytest.approx([1 / 3])


STRATEGIES = {
    "fedavgm": (strategy.FedAvgM, {"server_momentum": 0.8, "server_learning_rate": 0.7}),
    "fedadagrad": (strategy.FedAdagrad, {"eta": 0.05, "tau": 0.01}),
    "fedadam": (strategy.FedAdam, {"eta": 0.05, "tau": 0.01, "beta_1": 0.8, "beta_2": 0.95}),
    "fedyogi": (strategy.FedYogi, {"eta": 0.05, "tau": 0.01, "beta_1": 0.8, "beta_2": 0.95}),
}
GRID = SimpleNamespace(get_node_ids=lambda: [1, 2, 3])


def reply(tensors: dict[str, np.ndarray], examples: int) -> SimpleNamespace:
    arrays = ArrayRecord({n: Array(t) for n, t in tensors.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples})})
    return SimpleNamespace(has_error=lambda: False, content=content)


@pytest.mark.parametrize("name", STRATEGIES)
def test_equals_flowers_strategy(name, monkeypatch):
    monkeypatch.setattr(strategy.FedAvg, "_construct_messages", lambda *_: [])  # needs a running task
    kind, options = STRATEGIES[name]
    flower = kind(**options)
    mine = make(name, **{"beta" if k == "server_momentum" else k: v for k, v in options.items()})
    rng = np.random.default_rng(0)
    theirs = ours = {"a": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
    memory = {}
    for round_ in range(1, 7):
        record = ArrayRecord({n: Array(t) for n, t in theirs.items()})
        list(flower.configure_train(round_, record, ConfigRecord(), GRID))
        moves = [{n: 0.1 * rng.normal(size=t.shape).astype(np.float32) for n, t in ours.items()} for _ in range(3)]
        replies = [reply({n: theirs[n] + m[n] for n in m}, 1 + 2 * k) for k, m in enumerate(moves)]
        arrays, _ = flower.aggregate_train(round_, replies)
        group = Aggregator(mine).group("0", ours, memory)
        for k, m in enumerate(moves):
            group.add({n: ours[n] + m[n] for n in m}, 1 + 2 * k, {})
        before, ours = ours, group.result()
        theirs = {n: a.numpy() for n, a in arrays.items()}
        for tensor in ours:
            np.testing.assert_allclose(ours[tensor], theirs[tensor], rtol=1e-6, atol=1e-6)
            assert np.abs(ours[tensor] - before[tensor]).max() > 1e-3
        theirs = {n: t.astype(np.float32) for n, t in theirs.items()}


def test_a_tensors_steps_are_its_own():
    """Only what was updated counts: the other half of a subspace has its first step in its own first round."""
    fedopt, memory = make("fedadam"), {}
    old = {"a": f32(0), "b": f32(0)}
    fedopt.step({"b": old["b"]}, {"b": f32(1)}, memory)
    fedopt.step({"b": old["b"]}, {"b": f32(1)}, memory)
    late = fedopt.step({"a": old["a"]}, {"a": f32(1)}, memory)["a"]
    assert late == fedopt.step({"a": old["a"]}, {"a": f32(1)}, {})["a"]
    assert {name: state["steps"] for name, state in memory.items()} == {"b": 2, "a": 1}


@pytest.mark.parametrize("name", sorted(registry.FEDOPTS))
def test_the_server_keeps_as_many_copies_as_are_declared(name):
    fedopt, memory = make(name), {}
    if fedopt.sums():
        fedopt.absorb({"a": np.ones(5)}, memory)
    for _ in range(2):
        fedopt.step({"a": f32(*[0.0] * 5)}, {"a": f32(*[1.0] * 5)}, memory)
    assert sum(array.size for array in arrays(memory)) == 5 * fedopt.server_copies
    assert bool(fedopt.client_copies) == fedopt.remembers
