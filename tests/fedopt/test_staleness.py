"""Late updates by hand: weights, differences from where a client began, and what equals FedAvg."""

import numpy as np
import pytest

from fcit import registry
from fcit.config import parse
from fcit.config.devices import Asynchronous
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.staleness import FedAsync, FedBuff
from tests.helpers.toy import f32


def settings(**keys) -> Asynchronous:
    return Asynchronous.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({}, [1, 2**-0.5, 3**-0.5, 0.5]),  # of FedBuff: 1 / sqrt(1 + tau)
        ({"a": 1}, [1, 1 / 2, 1 / 3, 1 / 4]),
        ({"staleness": "hinge", "a": 10, "b": 2}, [1, 1, 1, 1 / 11]),
        ({"staleness": "constant"}, [1, 1, 1, 1]),
    ],
)
def test_weights_of_zero_to_three_server_updates(keys, weights):
    rule = FedBuff(settings(**keys))
    assert [rule.weight(tau) for tau in range(4)] == pytest.approx(weights)


def test_fedbuff_adds_what_a_late_client_learnt_to_the_tensors_of_now():
    rule = FedBuff(settings(a=1))
    kept = rule.kept({"x": f32(5, 1)}, {"x": f32(3, 1)})
    assert kept["x"].tolist() == [2, 0]
    joined = rule.joined({**kept, "extra/n": f32(9)}, {"x": f32(10, 10)}, lambda name: 3, late=True)
    assert joined["x"].tolist() == [10 + 2 / 4, 10]
    assert joined["extra/n"].tolist() == [9]


def test_fedasync_mixes_by_staleness():
    rule = FedAsync(settings(rule="fedasync", mixing=0.5, a=1))
    kept = rule.kept({"x": f32(8)}, {"x": f32(99)})
    assert rule.joined(kept, {"x": f32(4)}, lambda name: 0, late=False)["x"].tolist() == [6]
    assert rule.joined(kept, {"x": f32(4)}, lambda name: 1, late=True)["x"].tolist() == [5]


def test_what_both_rules_differ_in_is_where_the_difference_begins():
    """FLSim's fed_buff_aggregation and fed_async_aggregation at equal weight: from x' to y, and from x to y."""
    begun, ended, now = f32(50), f32(58), f32(100)
    buff, mixed = FedBuff(settings(staleness="constant")), FedAsync(settings(staleness="constant", mixing=0.5))
    late = buff.joined(buff.kept({"x": ended}, {"x": begun}), {"x": now}, lambda name: 7, late=True)
    assert late["x"].tolist() == [100 + (58 - 50)]
    late = mixed.joined(mixed.kept({"x": ended}, {"x": begun}), {"x": now}, lambda name: 7, late=True)
    assert late["x"].tolist() == [100 + 0.5 * (58 - 100)]


def test_a_stale_buffer_takes_a_shorter_step():
    rule, now = FedBuff(settings()), {"x": f32(100)}
    late = [rule.joined(rule.kept({"x": f32(58)}, {"x": f32(50)}), now, lambda name: 3, late=True) for _ in range(2)]
    assert step([(tensors, 1) for tensors in late], now)["x"].tolist() == [100 + 8 / 2]  # FedScale: 100 + 8


def test_every_tensor_has_the_staleness_of_its_home():
    rule = FedBuff(settings(a=1))
    now = {"shared": f32(0), "own": f32(0)}
    joined = rule.joined({"shared": f32(6), "own": f32(6)}, now, lambda name: 2 if name == "shared" else 0, late=True)
    assert [joined["shared"][0], joined["own"][0]] == [2, 6]
    assert joined["own"].dtype == np.float32


def step(updates, old):
    fedopt = registry.resolve("fedopt", "fedavg")(parse({}))
    group = Aggregator(fedopt).group("0", old, {})
    for tensors, weight in updates:
        group.add(tensors, weight, {})
    return group.result()


def test_a_buffer_steps_by_the_mean_of_weighted_differences():
    rule, now = FedBuff(settings()), {"x": f32(100)}
    fresh = rule.joined({"x": f32(104)}, now, lambda name: 0, late=False)
    late = rule.joined(rule.kept({"x": f32(58)}, {"x": f32(50)}), now, lambda name: 3, late=True)
    # 100 + (3 * 4 + 1 * 8 / sqrt(1 + 3)) / (3 + 1)
    assert step([(fresh, 3), (late, 1)], now)["x"].tolist() == [104]


def test_a_buffer_of_fresh_updates_is_fedavg_bit_for_bit():
    rng, rule = np.random.default_rng(0), FedBuff(settings())
    old = {"x": rng.standard_normal(50).astype(np.float32)}
    updates = [({"x": rng.standard_normal(50).astype(np.float32)}, n) for n in (3, 5, 7)]
    joined = [(rule.joined(t, old, lambda name: 0, late=False), n) for t, n in updates]
    assert step(joined, old)["x"].tobytes() == step(updates, old)["x"].tobytes()
