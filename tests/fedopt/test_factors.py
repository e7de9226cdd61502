"""Factor aggregation with matrices small enough to multiply by hand."""

import numpy as np
import pytest

from fcit.config import RunConfig
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.factors import Alternate, FrozenA, Separate, Svd
from fcit.fedopt.fedavg import FedAvg
from fcit.fedopt.products import Products, Sketch

A, B, P = "x.lora_A.weight", "x.lora_B.weight", "multi_modal_projector.weight"
GATE = "x.lora_gate.weight"


def f32(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def fold(rule, old, *updates):
    """New tensors and the exactness error of home "0"."""
    aggregator = Aggregator(FedAvg(RunConfig()), rule)
    group = aggregator.group("0", old, {})
    for tensors, weight in updates:
        group.add(tensors, weight, {})
    return group.result(), aggregator.exactness.get("0")


def drift(clients: int, shape=(6, 2, 5), seed=0):
    """Factors of clients that left a common start, and their record counts."""
    rng = np.random.default_rng(seed)
    d_out, r, d_in = shape
    updates = []
    for k in range(clients):
        tensors = {A: rng.normal(size=(r, d_in)), B: rng.normal(size=(d_out, r))}
        updates.append(({n: t.astype(np.float32) for n, t in tensors.items()}, k + 1))
    return {A: np.ones((r, d_in), np.float32), B: np.zeros((d_out, r), np.float32)}, updates


def wanted(updates) -> np.ndarray:
    """The dense mean product."""
    total = sum(weight for _, weight in updates)
    return sum(w * t[B].astype(np.float64) @ t[A].astype(np.float64) for t, w in updates) / total


def test_separate_by_hand():
    # W = (1 x [1, 0] + 1 x 3 [0, 1]) / 2 = [0.5, 1.5]; A' = [0.5, 0.5], B' = 2: B'A' = [1, 1]; both miss 0.5.
    old = {A: f32([1, 1]), B: f32([0])}
    updates = ({A: f32([1, 0]), B: f32([1])}, 2), ({A: f32([0, 1]), B: f32([3])}, 2)
    new, error = fold(Separate(), old, *updates)
    assert new[A].tolist() == [[0.5, 0.5]]
    assert new[B].tolist() == [[2.0]]
    assert error == pytest.approx((0.5 / 2.5) ** 0.5, rel=1e-5)  # sqrt(0.25 + 0.25) / sqrt(0.25 + 2.25)


def test_separate_error_is_the_spread_of_the_factors():
    """||W - B'A'|| = ||sum_k w_k (B_k - B') (A_k - A')||."""
    old, updates = drift(4)
    new, error = fold(Separate(), old, *updates)
    spread = sum(w * (t[B] - new[B]).astype(np.float64) @ (t[A] - new[A]) for t, w in updates) / 10
    assert error == pytest.approx(np.linalg.norm(spread) / np.linalg.norm(wanted(updates)), rel=1e-5)


def test_separate_is_exact_where_clients_agree_on_a_factor():
    old, updates = drift(4)
    for name in (A, B):
        agreed = [({**t, name: updates[0][0][name]}, w) for t, w in updates]
        assert fold(Separate(), old, *agreed)[1] < 1e-6


def test_errors_of_layers_add_up_as_squares():
    # Layer x misses [0.5, -0.5] of [0.5, 1.5] as above; layer y misses nothing of 2.
    old = {A: f32([1, 1]), B: f32([0]), "y.lora_A.weight": f32([1, 0]), "y.lora_B.weight": f32([0])}
    same = {"y.lora_A.weight": f32([1, 0]), "y.lora_B.weight": f32([2])}
    updates = ({A: f32([1, 0]), B: f32([1]), **same}, 1), ({A: f32([0, 1]), B: f32([3]), **same}, 1)
    assert fold(Separate(), old, *updates)[1] == pytest.approx((0.5 / 6.5) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("rule", [Separate, Svd])
def test_nothing_learnt_is_no_error(rule):
    old = {A: f32([3, 4, 0], [0, 0, 1]), B: np.zeros((2, 2), np.float32)}
    new, error = fold(rule(), old, (old, 1), (old, 5))
    assert error == 0.0
    assert not new[B].any()
    # svd: rows at right angles, all of the old rows' mean length, (5 + 1) / 2; the longest old row comes first.
    expected = old[A] if rule is Separate else f32([1.8, 2.4, 0], [0, 0, 3])
    np.testing.assert_allclose(new[A], expected, atol=1e-6)


def test_svd_of_rank_one_by_hand():
    # W = [3, 4]^T [0, 1] x 2 in both clients. Old A's rows are 1 and 3 long: c = 2.
    old = {A: f32([1, 0], [0, 3]), B: np.zeros((2, 2), np.float32)}
    update = {A: f32([0, 2], [0, 0]), B: f32([3, 7], [4, 7])}
    new, error = fold(Svd(), old, (update, 1), (update, 2))
    # U = [0.6, 0.8], S = 10, V = [0, 1]: first row of A is 2 [0, 1], first column of B is 10 [0.6, 0.8] / 2.
    # The direction W lacks is filled in A with what the old A has beside V, [1, 0], and zero in B.
    np.testing.assert_allclose(new[A], [[0, 2], [2, 0]], atol=1e-6)
    np.testing.assert_allclose(new[B], [[3, 0], [4, 0]], atol=1e-6)
    assert error < 1e-6


def test_svd_makes_the_largest_entry_of_a_row_positive():
    old = {A: f32([1, 0]), B: f32([0], [0])}
    new, _ = fold(Svd(), old, ({A: f32([-2, 1]), B: f32([1], [0])}, 1))
    np.testing.assert_allclose(new[A], [[2 / 5**0.5, -1 / 5**0.5]], atol=1e-6)
    np.testing.assert_allclose(new[B] @ new[A], [[-2, 1], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 2, 5), (5, 2, 6), (12, 3, 4), (4, 4, 4)])
def test_svd_is_the_best_of_its_rank(shape):
    old, updates = drift(5, shape)
    new, error = fold(Svd(), old, *updates)
    u, s, vt = np.linalg.svd(wanted(updates))
    r = shape[1]
    best = (u[:, :r] * s[:r]) @ vt[:r]
    np.testing.assert_allclose(new[B] @ new[A], best, atol=1e-5)
    assert error == pytest.approx(np.linalg.norm(s[r:]) / np.linalg.norm(s), abs=1e-6)
    lengths = np.linalg.norm(new[A], axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(old[A], axis=1).mean(), rtol=1e-5)
    assert new[A].dtype == new[B].dtype == np.float32


def test_svd_fills_missing_directions_at_right_angles():
    rng = np.random.default_rng(0)
    old = {A: rng.normal(size=(4, 7)).astype(np.float32), B: np.zeros((5, 4), np.float32)}
    b = np.zeros((5, 4), np.float32)
    b[:, 0] = rng.normal(size=5)
    new, _ = fold(Svd(), old, ({A: old[A], B: b}, 3))
    gram = new[A] @ new[A].T
    np.testing.assert_allclose(gram, np.eye(4) * gram[0, 0], atol=1e-5)
    assert not new[B][:, 1:].any()
    np.testing.assert_allclose(new[B] @ new[A], b @ old[A], atol=1e-5)
    again, _ = fold(Svd(), old, ({A: old[A], B: b}, 3))
    assert np.array_equal(new[A], again[A])


def test_svd_of_an_old_a_without_further_directions_leaves_rows_empty():
    old = {A: f32([1, 0], [2, 0]), B: np.zeros((2, 2), np.float32)}
    new, _ = fold(Svd(), old, (old, 1))
    np.testing.assert_allclose(new[A], [[1.5, 0], [0, 0]])


@pytest.mark.parametrize("rule", [Separate, Svd])
def test_what_is_no_factor_is_averaged(rule):
    old, ((first, _), (second, _)) = drift(2)
    rest = {P: f32([1.0]), GATE: f32([4.0])}, {P: f32([5.0]), GATE: f32([8.0])}
    new, _ = fold(rule(), old | rest[0], (first | rest[0], 1), (second | rest[1], 3))
    assert new[P].tolist() == [[4.0]]
    assert new[GATE].tolist() == [[7.0]]


def test_no_factors_no_error():
    assert fold(Separate(), {P: f32([1.0])}, ({P: f32([2.0])}, 1))[1] is None


def test_who_is_frozen_when():
    names = [P, GATE, B, A]
    assert [Alternate().frozen(names, turn) for turn in range(4)] == [[A], [B], [A], [B]]
    assert [FrozenA().frozen(names, turn) for turn in range(2)] == [[A], [A]]
    assert Separate().frozen(names, 0) == Svd().frozen(names, 1) == []


def test_one_factor_at_a_time_is_exact():
    old, updates = drift(3)
    sent = [({B: t[B]}, w) for t, w in updates]
    new, error = fold(Alternate(), old, *sent)
    product = sum(w * t[B].astype(np.float64) @ old[A] for t, w in updates) / 6
    np.testing.assert_allclose(new[B] @ new[A], product, atol=1e-6)
    assert new[A] is old[A]
    assert error is None


@pytest.mark.parametrize("shape", [(9, 2, 7), (7, 2, 9)])
def test_the_stack_never_outgrows_the_layer(shape):
    _, updates = drift(200, shape)
    layer = Products()
    for tensors, weight in updates:
        layer.add(tensors[B], tensors[A], weight)
        assert layer.rank <= min(shape[0], shape[2])
    dense = wanted(updates)
    assert layer.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-9)
    u, s, vt = layer.svd()
    np.testing.assert_allclose((u * s) @ vt, dense, atol=1e-10)
    other = updates[0][0]
    assert layer.distance(other[B], other[A]) == pytest.approx(np.linalg.norm(dense - other[B] @ other[A]), rel=1e-6)


@pytest.mark.parametrize("shape", [(100, 300), (1000, 600)])
def test_a_sketch_estimates_norms_and_does_not_grow(shape):
    """200 clients: W and the distance to the means of the factors within 15 % of the exact ones."""
    rng, exact, sketch = np.random.default_rng(0), Products(), Sketch()
    common = rng.normal(size=(shape[0], 4)), rng.normal(size=(4, shape[1]))
    factors = [[(c + rng.normal(size=c.shape)).astype(np.float32) for c in common] for _ in range(200)]
    for b, a in factors:
        exact.add(b, a, 3)
        sketch.add(b, a, 3)
    means = [np.mean([pair[i] for pair in factors], axis=0) for i in range(2)]
    assert sketch.norm() == pytest.approx(exact.norm(), rel=0.15)
    assert sketch.distance(*means) == pytest.approx(exact.distance(*means), rel=0.15)
    assert sketch._sum.shape == (min(shape[0], 256), 256)


def test_a_sketch_of_square_layers_is_of_rows_and_columns_apart():
    """With the same signs for both the diagonal would add up: three times the norm of the identity."""
    unit = np.eye(2560, dtype=np.float32)
    sketch = Sketch()
    sketch.add(unit, unit, 1)
    assert sketch.norm() == pytest.approx(2560**0.5, rel=0.15)


def test_narrow_layers_are_measured_exactly():
    rng, exact, sketch = np.random.default_rng(0), Products(), Sketch()
    for weight in (1, 5):
        b, a = rng.normal(size=(200, 3)).astype(np.float32), rng.normal(size=(3, 256)).astype(np.float32)
        exact.add(b, a, weight)
        sketch.add(b, a, weight)
    assert sketch.norm() == pytest.approx(exact.norm(), rel=1e-12)
    assert sketch.distance(b, a) == pytest.approx(exact.distance(b, a), rel=1e-12)
