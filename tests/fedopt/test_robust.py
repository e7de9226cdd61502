"""Robust rules on numbers small enough to check by hand."""

import itertools
import tracemalloc

import numpy as np
import pytest

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.contracts.fedopts import FedOptCase
from fcit.errors import ConfigError
from fcit.fedopt import robust
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedadam import FedAdam
from fcit.fedopt.fedavg import FedAvg
from fcit.fedopt.robust import Median, NormClip, Off, TrimmedMean, UpdateBuffer, trimmed

RULES = [Median, TrimmedMean, NormClip]


def f32(*values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def fold(rule, folder, old, updates, fedopt=FedAvg, memory=None):
    """The server's new tensors, and what the round event says about the rule."""
    aggregator = Aggregator(fedopt(RunConfig()), robust=rule, scratch=folder)
    group = aggregator.group("0", old, {} if memory is None else memory)
    for tensors, weight in updates:
        group.add(tensors, weight, {})
    return group.result(), aggregator.flags


def updates_of(*rows, weights=None):
    return [({"a": f32(*row)}, w) for row, w in zip(rows, weights or [1] * len(rows), strict=True)]


def test_median_by_hand(tmp_path):
    # The counts say nothing: the client of 1000 records is one of five.
    sent = updates_of((1, 9), (2, 5), (3, 7), (4, 6), (1000, -1000), weights=[1, 1, 1, 1, 1000])
    assert fold(Median(), tmp_path, {"a": f32(0, 0)}, sent)[0]["a"].tolist() == [3, 6]
    assert fold(Median(), tmp_path, {"a": f32(0, 0)}, sent[:4])[0]["a"].tolist() == [2.5, 6.5]


def test_trimmed_mean_by_hand(tmp_path):
    sent = updates_of((1, 9), (2, 5), (3, 7), (7, 6), (1000, -1000))
    # without 1 and 1000: (2 + 3 + 7) / 3; without 9 and -1000: (5 + 7 + 6) / 3
    assert fold(TrimmedMean(), tmp_path, {"a": f32(0, 0)}, sent)[0]["a"].tolist() == [4, 6]


@pytest.mark.parametrize(("clients", "cut"), [(3, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (100, 20)])
def test_a_fifth_is_trimmed_at_each_side_and_at_least_one(clients, cut):
    assert trimmed(clients) == cut


def test_norm_clip_by_hand(tmp_path):
    # From (1, 1): moved by (3, 4), (0, 1), (0, 30); norms 5, 1, 30, their median 5. The last is scaled by 1/6.
    sent = updates_of((4, 5), (1, 2), (1, 31), weights=[1, 2, 1])
    new = fold(NormClip(), tmp_path, {"a": f32(1, 1)}, sent)[0]["a"]
    assert new == pytest.approx([1 + 3 / 4, 1 + (4 + 2 * 1 + 5) / 4])


def test_norm_clip_takes_the_norm_over_all_tensors_of_a_home(tmp_path):
    old = {"a": f32(0), "b": f32(0)}
    sent = [({"a": f32(x), "b": f32(y)}, 1) for x, y in ((3, 4), (3, 4), (30, 40))]
    new, _ = fold(NormClip(), tmp_path, old, sent)
    assert new["a"] == pytest.approx([3])
    assert new["b"] == pytest.approx([4])


def test_norm_clip_where_most_moved_nothing(tmp_path):
    assert fold(NormClip(), tmp_path, {"a": f32(2)}, updates_of((2,), (2,), (9,)))[0]["a"].tolist() == [2]


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_clients_does_not_matter(rule, tmp_path):
    rng = np.random.default_rng(0)
    sent = [({"a": rng.normal(size=(3, 2)).astype(np.float32)}, k + 1) for k in range(4)]
    old = {"a": np.zeros((3, 2), np.float32)}
    found = [fold(rule(), tmp_path, old, order)[0]["a"] for order in itertools.permutations(sent)]
    tolerance = 1e-7 if rule is NormClip else 0  # a weighted sum: the last bit
    assert all(np.allclose(value, found[0], 0, tolerance) for value in found)


@pytest.mark.parametrize("rule", RULES)
def test_one_of_five_cannot_carry_the_model_away(rule, tmp_path):
    honest = [(1.0 + 0.1 * k, -1.0) for k in range(4)]
    old = {"a": f32(0, 0)}
    new = fold(rule(), tmp_path, old, updates_of(*honest, (-1e6, 1e6)))[0]["a"]
    assert np.linalg.norm(new) < 2
    assert np.linalg.norm(fold(Off(), tmp_path, old, updates_of(*honest, (-1e6, 1e6)))[0]["a"]) > 1e5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clients", [1, 2])
def test_two_clients_are_no_majority(rule, clients, tmp_path):
    """The plain mean to the bit, and the round says so."""
    case = FedOptCase("fedavg")
    sent = [update[:2] for update in case.sent(case.old, 0)][:clients]
    plain, nothing = fold(Off(), tmp_path, case.old, sent)
    new, flags = fold(rule(), tmp_path, case.old, sent)
    assert flags == {"robust_skipped": ["0"]}
    assert nothing == {}
    assert all(np.array_equal(new[n], plain[n]) for n in plain)


@pytest.mark.parametrize("rule", RULES)
def test_three_are(rule, tmp_path):
    assert fold(rule(), tmp_path, {"a": f32(0)}, updates_of((1,), (2,), (3,)))[1] == {"robust_skipped": []}


@pytest.mark.parametrize("rule", RULES)
def test_nobody_answered(rule, tmp_path):
    old, memory = {"a": f32(1)}, {}
    assert fold(rule(), tmp_path, old, [], FedAdam, memory) == (old, {"robust_skipped": []})
    assert memory == {}


@pytest.mark.parametrize("rule", RULES)
def test_equal_updates_are_taken_as_they_are(rule, tmp_path):
    new = fold(rule(), tmp_path, {"a": f32(0, 0)}, updates_of(*[(0.1, -3.0)] * 4))[0]["a"]
    assert new == pytest.approx([0.1, -3.0], rel=1e-7)


def test_the_federated_optimiser_steps_towards_the_combined_mean(tmp_path):
    # FedAdam's first step has the sign of (mean - old): plain it is -, by median +.
    sent, old = updates_of((1,), (1,), (-100,)), {"a": f32(0)}
    assert (
        fold(Median(), tmp_path, old, sent, FedAdam)[0]["a"][0]
        > 0
        > fold(Off(), tmp_path, old, sent, FedAdam)[0]["a"][0]
    )


def test_a_tensor_that_nobody_sent_stays(tmp_path):
    old = {"a": f32(0), "frozen": f32(7)}
    new, _ = fold(Median(), tmp_path, old, updates_of((1,), (2,), (3,)))
    assert new["frozen"] is old["frozen"]
    assert new["a"].tolist() == [2]


@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_columns_give_the_same(rule, tmp_path, monkeypatch):
    case = FedOptCase("fedavg")
    sent = [update[:2] for update in case.sent(case.old, 0)]
    whole = fold(rule(), tmp_path, case.old, sent)[0]
    monkeypatch.setattr(robust, "BLOCK", 3)  # one column at a time
    pieces = fold(rule(), tmp_path, case.old, sent)[0]
    assert all(np.allclose(whole[n], pieces[n], 0, 1e-7) for n in whole)


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_clients(rule, tmp_path, monkeypatch):
    monkeypatch.setattr(robust, "BLOCK", 1 << 12)
    size, peaks = 20_000, []
    for clients in (5, 50):
        tracemalloc.start()
        updates = (({"a": np.full(size, k, np.float32), "b": np.ones(size, np.float32)}, 1) for k in range(clients))
        fold(rule(), tmp_path, {"a": np.zeros(size, np.float32), "b": np.zeros(size, np.float32)}, updates)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 45 more updates would be 7 MB
    assert peaks[1] < peaks[0] + 100_000


def test_scratch_files_go_and_what_a_killed_round_left_is_not_read(tmp_path):
    left = UpdateBuffer(tmp_path / "0")
    left.add({"a": f32(1000)}, 1)
    assert fold(Median(), tmp_path, {"a": f32(0)}, updates_of((1,), (2,), (3,)))[0]["a"].tolist() == [2]
    assert list(tmp_path.iterdir()) == []


def test_homes_do_not_mix(tmp_path):
    aggregator = Aggregator(FedAvg(RunConfig()), robust=Median(), scratch=tmp_path)
    groups = [aggregator.group(home, {"a": f32(0)}, {}) for home in ("0", "../etc")]
    for value in (1, 2, 3):
        groups[0].add({"a": f32(value)}, 1, {})
    groups[1].add({"a": f32(9)}, 1, {})
    assert [group.result()["a"].tolist() for group in groups] == [[2], [9]]
    assert aggregator.flags == {"robust_skipped": ["../etc"]}


def test_a_rule_without_a_scratch_folder_is_a_mistake():
    with pytest.raises(ValueError, match="scratch"):
        Aggregator(FedAvg(RunConfig()), robust=Median()).group("0", {}, {})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"factors": "svd"}, "factors: 'svd' looks at the products"),
        ({"fedopt": "scaffold"}, "fedopt: 'scaffold' beside their tensors"),
        ({"method": "ewc"}, "method: 'ewc' beside their tensors"),
        ({"method": "l2p"}, "method: 'l2p' beside their tensors"),
        ({"method": "joint"}, "method: 'joint' pools all data"),
        ({"federation": {"clients_per_round": 2}}, "needs 3 updates, and federation.clients_per_round is 2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    configuration.parse({**settings, "robust": "none"})
    with pytest.raises(ConfigError, match=says):
        configuration.parse({**settings, "robust": "median"})


@pytest.mark.parametrize("rule", sorted(set(registry.ROBUST) - {"none"}))
@pytest.mark.parametrize("more", [{}, {"factors": "alternate"}, {"fedopt": "fedadam"}, {"method": "finetune"}])
def test_the_rest_is_fine(rule, more):
    assert configuration.parse({**more, "robust": rule}).robust == rule
