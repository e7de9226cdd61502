"""A round with differential privacy: closed forms, sensitivity, and noise that two sums never share."""

import math

import numpy as np
import pytest

from fcit.config import RunConfig
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.fedopt.fedavgm import FedAvgM
from fcit.privacy.mechanism import Mechanism
from fcit.privacy.noise import SECRET, Noise
from tests.helpers.toy import f32

OLD = {"a": f32(1, 2), "b": f32(0)}


def mechanism(multiplier=0.0, clip=1.0, clients=4, homes=None, secret=bytes(SECRET), owner=(0, 0)):
    homes = {"0": ["a", "b"]} if homes is None else homes
    return Mechanism(clip, multiplier, clients, homes, Noise(secret), owner)


def round_of(updates, rule, old=OLD, fedopt=FedAvg, home="0"):
    """The server's tensors after a round of these updates."""
    aggregator = Aggregator(fedopt(RunConfig()))
    aggregator.mechanism = rule
    group = aggregator.group(home, old, {})
    for update in updates:
        group.add(rule.clipped(update, old), 1000, {})
    return group.result()


def test_without_noise_it_is_the_sum_over_a_fixed_number():
    # moved by (3, 0, 4), clipped to norm 1, and by (0, 0.4, 0); of four clients two answered
    new = round_of([{"a": f32(4, 2), "b": f32(4)}, {"a": f32(1, 2.4), "b": f32(0)}], mechanism())
    assert new["a"].tolist() == pytest.approx([1 + 0.6 / 4, 2 + 0.4 / 4])
    assert new["b"].tolist() == pytest.approx([0.8 / 4])


def test_noise_has_the_deviation_z_c_over_n():
    old = {"a": np.zeros(100_000, np.float32)}
    rule = mechanism(multiplier=1.5, clip=0.2, clients=6, homes={"0": ["a"]})
    drawn = round_of([], rule, old)["a"]
    assert drawn.std() == pytest.approx(1.5 * 0.2 / 6, rel=0.02)
    assert abs(drawn.mean()) < 4 * 0.05 / math.sqrt(100_000)


def test_neighbours_differ_by_no_more_than_the_sensitivity():
    """Whatever a client sends, to both of its homes: replaced by zero, the sums move by C at most."""
    rng = np.random.default_rng(5)
    old = {n: rng.normal(0, 10, 50).astype(np.float32) for n in ("own", "common")}
    homes = {"0": ["own"], "shared": ["common"]}

    def sums(updates):
        rule = mechanism(clip=0.7, clients=1, homes=homes)
        moved = {"0": np.zeros(50), "shared": np.zeros(50)}
        for update in updates:
            new = rule.clipped(update, old)
            for home, (name,) in homes.items():
                moved[home] += new[name].astype(np.float64) - old[name]
        return np.concatenate(list(moved.values()))

    for size in (1e-3, 0.01, 1.0, 1e6):
        updates = [{n: (t + size * rng.normal(size=50)).astype(np.float32) for n, t in old.items()} for _ in range(3)]
        with_all = sums(updates)
        for left_out in range(3):
            without = sums(updates[:left_out] + updates[left_out + 1 :])
            assert np.linalg.norm(with_all - without) <= 0.7 * (1 + 1e-9)


def test_weights_do_not_count():
    rule, others = mechanism(), mechanism()
    group = Aggregator(FedAvg(RunConfig()))
    group.mechanism = others
    summed = group.group("0", OLD, {})
    summed.add(others.clipped({"a": f32(1, 2.5), "b": f32(0)}, OLD), 1, {})
    assert summed.result()["a"].tolist() == round_of([{"a": f32(1, 2.5), "b": f32(0)}], rule)["a"].tolist()


def test_same_sums_have_the_same_noise_and_other_sums_other_noise():
    one, again, other = ([{"a": f32(1, y), "b": f32(0)}] for y in (2.5, 2.5, 2.25))
    first, second, third = (round_of(sent, mechanism(multiplier=1.0)) for sent in (one, again, other))
    assert first["b"].tolist() == second["b"].tolist()
    assert first["b"].tolist() != third["b"].tolist()


def test_every_round_and_home_has_noise_of_its_own():
    drawn = [round_of([], mechanism(1.0, owner=owner))["a"].tolist() for owner in ((0, 0), (0, 1), (1, 0))]
    drawn.append(round_of([], mechanism(1.0, homes={"1": ["a", "b"]}), home="1")["a"].tolist())
    assert len({tuple(values) for values in drawn}) == 4


def test_a_home_without_updates_is_noised_too():
    assert round_of([], mechanism(multiplier=1.0))["a"].tolist() != OLD["a"].tolist()


def test_a_home_that_no_one_was_to_train_stays():
    assert round_of([], mechanism(1.0, homes={"0": ["a"]}), home="7") == OLD


def test_tensors_that_are_not_trained_stay():
    new = round_of([{"b": f32(0.5)}], mechanism(1.0, homes={"0": ["b"]}))
    assert new["a"].tolist() == OLD["a"].tolist()


def test_a_home_is_released_once():
    rule = mechanism(multiplier=1.0)
    round_of([], rule)
    with pytest.raises(ValueError, match="home '0' was aggregated twice"):
        round_of([], rule)


def test_the_optimiser_steps_from_the_noisy_mean():
    options = {"name": "fedavgm", "beta": 0.5, "server_learning_rate": 2.0}
    rule = mechanism(multiplier=1.0)
    aggregator = Aggregator(FedAvgM(RunConfig(fedopt=options)))
    aggregator.mechanism = rule
    new = aggregator.group("0", OLD, {}).result()
    plain = round_of([], mechanism(multiplier=1.0))
    assert (new["a"] - OLD["a"]).tolist() == pytest.approx((2 * (plain["a"] - OLD["a"])).tolist(), rel=1e-5)


def test_the_share_that_needs_no_clipping():
    rule = mechanism(clients=4)
    for y in (2.5, 2.1, 9.0):  # moved by 0.5, 0.1 and 7; the fourth client has not answered
        rule.clipped({"a": f32(1, y), "b": f32(0)}, OLD)
    assert rule.share(0.0) == pytest.approx((2 + 0.5) / 4)


def test_the_share_is_noised():
    shares = [mechanism(clients=4, owner=(0, round_)).share(2.0) for round_ in range(2000)]
    assert np.std(shares) == pytest.approx(2.0 / 4, rel=0.1)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
