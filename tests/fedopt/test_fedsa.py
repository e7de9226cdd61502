"""FedSA-LoRA: A travels, B stays."""

from types import SimpleNamespace

import numpy as np
import pytest

import fcit.config
from fcit.config.per_client_checks import per_client
from fcit.errors import ConfigError
from fcit.fedopt.factors import Separate
from fcit.fedopt.fedsa import FedSA
from fcit.report.scope import ScoreScope
from tests.fedopt.test_factors import A, B, P, f32, fold


class Slot:
    """Adapters with factors of one layer."""

    def __init__(self, a: np.ndarray) -> None:
        self.trainable = {A: a, B: np.full((3, 1), 7, np.float32), P: f32([1])}

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        self.trainable |= tensors

    def read(self) -> dict[str, np.ndarray]:
        return {name: tensor.copy() for name, tensor in self.trainable.items()}


def session(rank: int, memory, subspace: str = "0") -> SimpleNamespace:
    return SimpleNamespace(adapters=Slot(np.ones((rank, 2), np.float32)), memory=memory, subspace=subspace)


def test_a_is_averaged_by_records_as_ever_and_b_stays():
    old = {A: f32([9, 9]), B: f32([0])}
    updates = [({A: f32([1, 0])}, 1), ({A: f32([5, 4])}, 3)]
    new, error = fold(FedSA(), old, *updates)
    assert new[A].tolist() == [[4, 3]]
    np.testing.assert_array_equal(new[A], fold(Separate(), old, *updates)[0][A])
    assert new[B] is old[B]
    assert error is None


def test_smaller_ranks_are_filled_with_zeros():
    new, _ = fold(
        FedSA(), {A: f32([9, 9], [9, 9]), B: f32([0, 0])}, ({A: f32([4, 0])}, 1), ({A: f32([0, 4], [2, 2])}, 1)
    )
    assert new[A].tolist() == [[2, 2], [1, 1]]


def test_b_is_not_sent():
    bank = {A: f32([1, 1]), B: f32([1]), P: f32([1])}
    assert set(FedSA().outgoing("0", bank, {}, 0)) == {A, P}


def test_a_client_goes_on_from_its_own_b_of_each_subspace():
    rule, memory = FedSA(), {}
    first = session(2, memory)
    rule.prepare(first)
    assert first.adapters.trainable[B].tolist() == [[0, 0]] * 3  # not what another client has left in the slot
    first.adapters.trainable[B] = f32([1, 2], [3, 4], [5, 6])
    rule.finish(first)
    other = session(2, memory, "1")
    rule.prepare(other)
    assert not other.adapters.trainable[B].any()
    rule.finish(other)
    again = session(2, memory)
    rule.prepare(again)
    assert again.adapters.trainable[B].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert set(memory) == {"subspace-0", "subspace-1"}


@pytest.mark.parametrize(("rank", "b"), [(1, [1]), (3, [1, 2, 0])])
def test_a_b_of_another_rank_is_cut_or_filled(rank, b):
    rule, memory = FedSA(), {"subspace-0": {B: f32([1, 2], [1, 2], [1, 2])}}
    now = session(rank, memory)
    rule.prepare(now)
    assert now.adapters.trainable[B].tolist() == [b] * 3


def test_a_client_answers_with_its_own_b():
    server = [{A: f32([1, 1], [1, 1]), B: f32([0, 0])}, {A: f32([2, 2], [2, 2]), B: f32([0, 0])}]
    mine = FedSA().own(["0", "1"], server, {"subspace-1": {B: f32([5])}})
    assert mine[0][B].tolist() == [[0, 0]]
    assert mine[1][B].tolist() == [[5, 0]]
    assert mine[1][A] is server[1][A]


def test_its_scores_have_a_scope_of_their_own():
    mine, others = (fcit.config.parse({"factors": name}) for name in ("fedsa", "separate"))
    assert per_client(mine)
    assert not per_client(others)
    assert ScoreScope.of(mine) != ScoreScope.of(others)
    assert "factors of their own" in ScoreScope.of(mine).label
    assert ScoreScope.of(others).label == ""


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"fedopt": "scaffold"}, r"leaves B with its client, and fedopt: 'scaffold' sums"),
        ({"robust": "median"}, r"robust: 'median' protects a global model"),
        ({"privacy": {"client_dp": "on", "epsilon": 8}}, r"privacy.client_dp: 'on' hides what a client has sent"),
        (
            {"privacy": {"secure_aggregation": "on"}},
            r"privacy.secure_aggregation: 'on' lets the server see no client's",
        ),
        ({"privacy": {"record_dp": "on", "record_epsilon": 8}}, r"privacy.record_dp: 'on' covers what clients send"),
        ({"method": "ewc"}, r"factors: 'fedsa' makes no sense with method: 'ewc'"),
    ],
)
def test_what_does_not_go_together_is_said(raw, said):
    with pytest.raises(ConfigError, match=said):
        fcit.config.parse({"factors": "fedsa", **raw})
