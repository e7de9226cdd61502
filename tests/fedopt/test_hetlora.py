"""HetLoRA with factors small enough to multiply by hand."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fcit.config
from fcit.errors import ConfigError
from fcit.fedopt.factors import Separate
from fcit.fedopt.hetlora import Hetlora
from fcit.methods.base import Update
from server.checkpoint import Progress
from server.ranks import Ranks
from tests.fedopt.test_factors import A, B, P, f32, fold
from tests.fedopt.test_ranks import of_ranks, product


def test_the_weight_is_the_norm_of_the_product_over_all_layers():
    tensors = {A: f32([3, 4]), B: f32([2]), "y.lora_A.weight": f32([1, 0]), "y.lora_B.weight": f32([0], [1])}
    assert Hetlora().weight(tensors) == pytest.approx((10**2 + 1) ** 0.5)
    _, [(tensors, _)] = of_ranks(3)
    assert Hetlora().weight(tensors) == pytest.approx(np.linalg.norm(product(tensors)))


def test_factors_weigh_by_their_product_and_all_else_by_records():
    old = {A: f32([9, 9]), B: f32([9]), P: f32([0])}
    # S_1 = 2 x 1, S_2 = 3 x 2: p = 1/4 and 3/4, whatever the records.
    updates = ({A: f32([1, 0]), B: f32([2]), P: f32([4])}, 3), ({A: f32([0, 2]), B: f32([3]), P: f32([8])}, 1)
    new, _ = fold(Hetlora(), old, *updates)
    np.testing.assert_allclose(new[A], [[0.25, 1.5]])
    np.testing.assert_allclose(new[B], [[2.75]])
    assert new[P].tolist() == [[5.0]]


def test_zeros_and_untrained_columns_as_with_separate():
    old = {A: f32([9, 9], [8, 8], [7, 6]), B: f32([9, 8, 5])}
    # Both products have the norm 4.
    new, _ = fold(Hetlora(), old, ({A: f32([1, 0]), B: f32([4])}, 1), ({A: f32([0, 2], [0, 0]), B: f32([2, 2])}, 3))
    np.testing.assert_allclose(new[A], [[0.5, 1], [0, 0], [7, 6]])
    np.testing.assert_allclose(new[B], [[3, 1, 5]])


def test_columns_of_a_client_without_a_weight_stay():
    old = {A: f32([9, 9], [8, 8]), B: f32([0, 0])}
    # The second has taken one step, at rate 0 (training.schedule: trainer): its product is zero.
    new, _ = fold(Hetlora(), old, ({A: f32([1, 2]), B: f32([4])}, 1), ({A: f32([9, 9], [8, 8]), B: f32([0, 0])}, 1))
    assert new[A].tolist() == [[1, 2], [8, 8]]
    assert new[B].tolist() == [[4, 0]]


def test_equal_norms_and_records_are_separate_bit_for_bit():
    old = {A: f32([9, 9]), B: f32([9])}
    updates = ({A: f32([0.6, 0.8]), B: f32([3])}, 1), ({A: f32([1, 0]), B: f32([3])}, 1)
    np.testing.assert_array_equal(fold(Hetlora(), old, *updates)[0][B], fold(Separate(), old, *updates)[0][B])
    np.testing.assert_allclose(fold(Hetlora(), old, *updates)[0][A], fold(Separate(), old, *updates)[0][A])


def test_one_client_alone_is_separate_bit_for_bit():
    old, updates = of_ranks(2)
    new, same = fold(Hetlora(), old, *updates)[0], fold(Separate(), old, *updates)[0]
    for name in old:
        np.testing.assert_array_equal(new[name], same[name])


def test_without_any_product_factors_stay():
    old = {A: f32([9, 9]), B: f32([0]), P: f32([0])}
    new, _ = fold(Hetlora(), old, ({A: f32([1, 1]), B: f32([0]), P: f32([2])}, 1))
    assert new[A].tolist() == [[9, 9]]
    assert new[B].tolist() == [[0]]
    assert new[P].tolist() == [[2]]


def test_clients_can_come_in_any_order():
    old, updates = of_ranks(1, 2, 4)
    results = [fold(Hetlora(), old, *order)[0] for order in permutations(updates)]
    for result in results[1:]:
        for name in old:
            np.testing.assert_allclose(result[name], results[0][name], rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------- pruning


def test_the_penalty_is_that_of_the_tail():
    # of rank 2 the tail begins at floor(0.99 x 2) = 1
    a = torch.tensor([[1.0, 1.0], [3.0, 4.0]], requires_grad=True)
    b = torch.tensor([[7.0, 2.0]], requires_grad=True)
    session = SimpleNamespace(adapters=SimpleNamespace(trainable={A: a, B: b}))
    penalty = Hetlora().penalty(session)
    assert penalty.item() == pytest.approx(0.01 * 2 * 5)
    penalty.backward()
    assert a.grad[0].tolist() == [0, 0]
    np.testing.assert_allclose(b.grad, [[0, 0.05]], rtol=1e-6)


def test_the_penalty_of_a_fresh_subspace_has_a_gradient():
    a, b = torch.ones(2, 3, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    Hetlora().penalty(SimpleNamespace(adapters=SimpleNamespace(trainable={A: a, B: b}))).backward()
    assert bool(torch.isfinite(b.grad).all())


def test_rank_one_has_no_tail():
    session = SimpleNamespace(adapters=SimpleNamespace(trainable={A: torch.ones(1, 3), B: torch.ones(2, 1)}))
    assert Hetlora().penalty(session) == 0
    assert Hetlora().pruned({A: f32([1, 1]), B: f32([1])}, {A: f32([0, 0]), B: f32([0])}) == 1


@pytest.mark.parametrize(("after", "rank"), [(0.5, 1), (1.0, 2), (1.5, 2)])
def test_a_tail_that_fades_is_cut(after, rank):
    before = {A: f32([1, 1], [1, 1]), B: f32([1, 1])}
    assert Hetlora().pruned(before, {A: f32([1, 1], [after, after]), B: f32([9, 1])}) == rank


def test_the_server_cuts_and_remembers_the_rank():
    config = fcit.config.parse(
        {"factors": "hetlora", "adapter": {"rank": 2, "ranks": 2, "min_rank": 1}, "federation": {"clients": 9}}
    )
    progress = Progress()
    ranks = Ranks(config, progress)
    sent = {A: f32([1, 1], [1, 1]), B: f32([1, 1]), P: f32([1])}
    faded, grown = {**sent, A: f32([1, 1], [0, 1])}, {**sent, A: f32([1, 1], [2, 2])}
    updates = list(ranks.pruned([Update(3, "0", 1, faded), Update(5, "0", 1, grown)], {"0": sent}))
    assert [u.tensors[A].shape for u in updates] == [(1, 2), (2, 2)]
    assert [u.tensors[B].shape for u in updates] == [(1, 1), (1, 2)]
    assert ranks.of(3) == 2  # until the round is over
    assert ranks.count([], {})["pruned"] == {3: 1}
    assert ranks.of(3) == 1
    assert ranks.of(5) == 2
    assert Ranks(config, progress).of(3) == 1  # resumed
    assert "pruned" not in ranks.count([], {})


def test_pruning_ends_at_the_least_rank():
    config = fcit.config.parse({"factors": "hetlora", "adapter": {"rank": 2, "ranks": 2}})
    ranks = Ranks(config, Progress())
    sent = {A: f32([1, 1], [1, 1]), B: f32([1, 1])}
    updates = ranks.pruned([Update(3, "0", 1, {**sent, A: f32([1, 1], [0, 1])})], {"0": sent})
    assert [u.tensors[A].shape for u in updates] == [(2, 2)]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"training": {"trainer": "hf"}}, r"factors: 'hetlora' has a term of the loss within them"),
        ({"privacy": {"record_dp": "on", "record_epsilon": 8}}, r"clients' ranks, which are counted and told"),
        ({"robust": "median"}, r"factors: 'hetlora' looks at the products"),
        ({"privacy": {"secure_aggregation": "on"}}, r"factors: 'hetlora' needs products of single updates"),
        ({"adapter": {"min_rank": 9}}, r"adapter.min_rank: 9 is more than the smallest rank of the run \(8\)"),
        ({"method": "ewc"}, r"factors: 'hetlora' makes no sense with method: 'ewc'"),
    ],
)
def test_what_does_not_go_together_is_said(raw, said):
    with pytest.raises(ConfigError, match=said):
        fcit.config.parse({"factors": "hetlora", **raw})
