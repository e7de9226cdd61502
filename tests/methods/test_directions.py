"""Covariances held as rows, and steps that leave directions alone."""

import numpy as np
import pytest
import torch

from fcit.methods.directions import Covariance, after_step, before_step, eigenvalues, leading, rescaled, unit
from tests.helpers.toy import session


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def covariance(factor: torch.Tensor) -> torch.Tensor:
    return factor.double().mT @ factor.double()


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T


def test_a_union_has_the_main_eigenvectors_of_the_weighted_sum():
    """The dense sum 0.25 C_1 + 0.75 C_2 of two clients, and its best approximation of rank 2."""
    first, second = rows(3, 6, 1), rows(4, 6, 2)
    united = leading(torch.cat([0.5 * first, 0.75**0.5 * second]), 2)
    dense = 0.25 * covariance(first) + 0.75 * covariance(second)
    torch.testing.assert_close(covariance(united), best(dense, 2))
    values = united.square().sum(1)
    torch.testing.assert_close(united @ united.T, torch.diag(values))
    torch.testing.assert_close(values, torch.linalg.eigvalsh(dense).flip(0)[:2])
    torch.testing.assert_close(eigenvalues(united), values)


@pytest.mark.parametrize("count", [2, 9])
def test_few_and_many_rows_have_the_same_covariance(count):
    factor = rows(count, 4)
    torch.testing.assert_close(covariance(leading(factor, 4)), covariance(factor))


def test_each_of_several_has_its_own_directions():
    several = torch.stack([rows(5, 4, seed) for seed in range(3)])
    torch.testing.assert_close(leading(several, 2), torch.stack([leading(one, 2) for one in several]))


def test_what_is_missing_is_zero():
    assert leading(torch.tensor([[3.0, 4.0]]), 3).abs().tolist() == [[3, 4], [0, 0], [0, 0]]
    assert leading(torch.zeros(2, 3), 2).tolist() == [[0] * 3] * 2
    assert unit(torch.tensor([[3.0, 4.0], [0, 0]])).tolist() == [pytest.approx([0.6, 0.8]), [0, 0]]


def test_rounding_is_no_direction():
    twice = torch.cat([rows(1, 50), 2 * rows(1, 50) * (1 + 1e-8)])
    assert (eigenvalues(twice) > 0).sum() == 1


def test_a_covariance_is_exact_until_there_is_no_room():
    covariances = [Covariance(6), Covariance(1000)]
    for seed in range(5):
        for one in covariances:
            one.add(rows(2, 8, seed) * (1 + 9 * (seed == 1)))
        if seed < 3:
            assert torch.equal(covariances[0].rows, covariances[1].rows)
        assert len(covariances[0].rows) <= 6
    bounded, exact = (unit(leading(one.rows, 2)) for one in covariances)
    assert (bounded @ exact.T).abs().diagonal().numpy() == pytest.approx(np.ones(2), abs=0.01)


def test_nothing_is_left_inside_and_the_mean_stays_outside():
    basis = unit(leading(rows(3, 8), 3)).float()
    steps = [rescaled(rows(2, 8, seed), basis, 0.0) for seed in (1, 2)]
    mean = 0.3 * steps[0] + 0.7 * steps[1]
    for step in (*steps, mean):
        assert (step @ basis.T).abs().max() < 1e-6
    torch.testing.assert_close(rescaled(mean, basis, 0.0), mean)  # and is moved no more


def test_directions_are_scaled_each_by_its_own():
    basis, x = torch.eye(3)[:2], torch.tensor([[1.0, 2, 3]])
    assert rescaled(x, basis, torch.tensor([0.5, 0.25])).tolist() == [[0.5, 0.5, 3]]
    assert rescaled(x, torch.zeros(2, 3), 0.0).tolist() == x.tolist()


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    return value / 2


@pytest.mark.parametrize(("what", "moved"), [("update", 0.5), ("gradient", 1.0)])
def test_a_step_or_the_gradient_before_it_is_steered(what, moved):
    """A step of length one whatever the gradient is, as that of Adam; of ``b`` there is no gradient."""
    view = session()
    a, b = view.adapters.trainable["a"], view.adapters.trainable["b"]
    a.grad = torch.tensor([4.0])
    before_step(view, ["a", "b"], halved, what)
    assert a.grad.item() == (4 if what == "update" else 2)
    with torch.no_grad():
        a -= a.grad.sign()
        b -= 1
    after_step(view, halved)
    assert a.item() == 1 - moved
    assert b.item() == 1
    after_step(view, halved)  # nothing was noted since
    assert a.item() == 1 - moved
