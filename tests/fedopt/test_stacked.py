"""FLoRA and FedEx-LoRA: exact within a stage, recompressed at its end."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

import fcit.config
from fcit.config import RunConfig
from fcit.errors import ConfigError
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.factors import Separate, Svd
from fcit.fedopt.fedavg import FedAvg
from fcit.fedopt.stacked import FedEx, Flora, chunks, recompressed
from fcit.io import trees
from fcit.models.ranks import rank_of
from tests.fedopt.test_factors import A, B, P, f32, fold, wanted
from tests.fedopt.test_ranks import of_ranks, product


def model(rule, bank, kept) -> np.ndarray:
    """The product that a round's clients have, without what they train: pieces, and the subspace if it is sent."""
    pieces = rule.constants("0", bank, kept.get("0", {})).values()
    sent = rule.outgoing("0", bank, kept.get("0", {}), 0)
    return product(sent) + sum(product(piece) for piece in pieces)


def round_of(rule, bank, kept, *updates):
    """A round's new subspace and its exactness."""
    aggregator = Aggregator(FedAvg(RunConfig()), rule, kept=kept)
    group = aggregator.group("0", bank, {})
    for tensors, weight in updates:
        group.add(tensors, weight, {})
    return group.result(), aggregator.exactness.get("0")


@pytest.mark.parametrize("given", [(4, 4, 4), (1, 2, 4), (1, 1)])
def test_flora_is_exact_for_any_ranks(given):
    bank, updates = of_ranks(*given)
    rule, kept = Flora(), {}
    before = model(rule, bank, kept)
    np.testing.assert_allclose(before, product(bank), atol=1e-6)
    new, error = round_of(rule, bank, kept, *updates)
    assert all(new[name] is bank[name] for name in bank)
    assert error < 1e-6
    np.testing.assert_allclose(model(rule, new, kept), before + wanted(updates), atol=1e-5)
    new, _ = round_of(rule, new, kept, *updates)
    np.testing.assert_allclose(model(rule, new, kept), before + 2 * wanted(updates), atol=1e-5)


@pytest.mark.parametrize(("rule", "ranks"), [(Flora(), (1, 2, 1)), (FedEx(), (1, 1, 1))])
def test_pieces_are_as_large_as_announced(rule, ranks):
    """What `fcit doctor` counts, and is at most: of generic updates, exactly."""
    bank, updates = of_ranks(*ranks)
    bank, kept = {**bank, A: bank[A][: max(ranks)], B: bank[B][:, : max(ranks)]}, {}
    round_of(rule, bank, kept, *updates)
    pieces = rule.constants("0", bank, kept["0"])
    assert [rank_of(piece) for piece in pieces.values()] == [*([max(ranks)] * rule.adds_itself), rule.added(ranks)]


def test_a_stack_by_hand():
    bank = {A: f32([1, 1]), B: f32([0], [0])}
    rule, kept = Flora(), {}
    round_of(rule, bank, kept, ({A: f32([4, 0]), B: f32([1], [0])}, 1), ({A: f32([0, 4]), B: f32([2], [5])}, 3))
    (piece,) = rule.constants("0", bank, kept["0"]).values()
    assert piece[A].tolist() == [[1, 0], [0, 3]]  # w_k A_k
    assert piece[B].tolist() == [[1, 2], [0, 5]]


def test_flora_begins_every_round_afresh_and_every_stage_with_its_subspace():
    bank, updates = of_ranks(4, 4)
    rule, kept = Flora(), {}
    first = rule.outgoing("0", bank, {}, 0)
    assert rule.outgoing("0", bank, {}, 0)[A] is first[A]
    assert not first[B].any()
    assert list(rule.constants("0", bank, {})) == ["0.0"]
    round_of(rule, bank, kept, *updates)
    assert list(rule.constants("0", bank, kept["0"])) == ["0.0", "0.1"]
    second = rule.outgoing("0", bank, kept["0"], 0)
    assert not np.array_equal(second[A], first[A])
    np.testing.assert_array_equal(Flora().outgoing("0", bank, {}, 0)[A], first[A])
    new, _ = rule.end_stage(bank, kept["0"])
    assert list(rule.constants("0", new, kept["0"])) == ["0.2"]  # no number comes twice


def test_clients_of_a_round_share_fresh_factors_whatever_subspaces_they_train_in_turn():
    bank, _ = of_ranks(4)
    rule = Flora()
    first, other, again = (rule.outgoing(home, bank, {}, 0) for home in ("0", "1", "0"))
    assert again[A] is first[A]
    assert not np.array_equal(other[A], first[A])


@pytest.mark.parametrize("given", [(2, 2), (2, 2, 2), (1, 1, 1, 1)])
def test_fedex_is_separate_and_the_rest_is_its_residual(given):
    bank, updates = of_ranks(*given, shape=(6, given[0], 5))
    rule, kept = FedEx(), {}
    new, error = round_of(rule, bank, kept, *updates)
    plain, same = fold(Separate(), bank, *updates)
    assert all(np.array_equal(new[name], plain[name]) for name in bank)
    assert error == pytest.approx(same, rel=1e-5)
    np.testing.assert_allclose(model(rule, new, kept), wanted(updates), atol=1e-6)
    (piece,) = rule.constants("0", new, kept["0"]).values()
    assert len(piece[A]) <= (len(given) - 1) * given[0]
    np.testing.assert_allclose(product(piece), wanted(updates) - product(new), atol=1e-6)


def test_residuals_of_several_rounds_add_up():
    bank, updates = of_ranks(2, 2, shape=(6, 2, 5))
    rule, kept = FedEx(), {}
    new, _ = round_of(rule, bank, kept, *updates)
    residual = wanted(updates) - product(new)
    _, others = of_ranks(2, 2, shape=(6, 2, 5), seed=1)
    new, _ = round_of(rule, new, kept, *others)
    np.testing.assert_allclose(model(rule, new, kept), residual + wanted(others), atol=1e-6)


@pytest.mark.parametrize("factor", [A, B])
def test_clients_that_agree_on_a_factor_leave_no_residual(factor):
    bank, updates = of_ranks(2, 2, shape=(6, 2, 5))
    agreed = [({**tensors, factor: updates[0][0][factor]}, weight) for tensors, weight in updates]
    kept = {}
    round_of(FedEx(), bank, kept, *agreed)
    assert FedEx().constants("0", bank, kept.get("0", {})) == {}


@pytest.mark.parametrize(("rule", "given"), [(Flora, (1, 2, 4)), (FedEx, (4, 4, 4))])
def test_a_stage_ends_with_the_best_of_its_rank(rule, given):
    bank, updates = of_ranks(*given)
    rule, kept = rule(), {}
    new, _ = round_of(rule, bank, kept, *updates)
    whole = model(rule, new, kept)
    end, missed = rule.end_stage(new, kept["0"])
    u, s, vt = np.linalg.svd(whole)
    np.testing.assert_allclose(product(end), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
    assert missed == pytest.approx(np.linalg.norm(s[4:]) / np.linalg.norm(s), abs=1e-6)
    assert rule.end_stage(end, kept["0"]) == (end, None)


def test_a_stage_of_one_round_from_the_start_is_svd():
    bank, updates = of_ranks(4, 4, 4)
    bank[B][:] = 0
    kept = {}
    round_of(rule := Flora(), bank, kept, *updates)
    np.testing.assert_allclose(
        product(rule.end_stage(bank, kept["0"])[0]), product(fold(Svd(), bank, *updates)[0]), atol=1e-5
    )


@pytest.mark.parametrize(("rule", "given"), [(Flora, (1, 2, 4)), (FedEx, (4, 4, 4))])
def test_clients_can_come_in_any_order(rule, given):
    bank, updates = of_ranks(*given)
    results = []
    for order in permutations(updates):
        kept = {}
        new, _ = round_of(part := rule(), bank, kept, *order)
        results.append(model(part, new, kept))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


@pytest.mark.parametrize("rule", [Flora, FedEx])
def test_what_is_kept_survives_a_checkpoint_bit_for_bit(rule):
    bank, updates = of_ranks(4, 4)
    kept = {}
    new, _ = round_of(rule(), bank, kept, *updates)
    plain, tensors = trees.flatten([list(item) for item in kept.items()])
    again = dict(trees.restore(plain, tensors))
    for saved in (kept, again):
        assert list(rule().constants("0", new, saved["0"])) == list(rule().constants("0", new, kept["0"]))
    ends = [rule().end_stage(new, saved["0"])[0] for saved in (kept, again)]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in bank)


@pytest.mark.parametrize("rule", [Flora, FedEx])
def test_all_else_is_averaged(rule):
    bank = {A: f32([1, 1]), B: f32([1]), P: f32([9])}
    updates = [({A: f32([1, 0]), B: f32([1]), P: f32([p])}, w) for p, w in ((1, 1), (5, 3))]
    new, _ = round_of(rule(), bank, {}, *updates)
    assert new[P].tolist() == [[4.0]]


# --------------------------------------------------------------------------- the client


def test_pieces_become_subspaces_of_one_rank():
    pieces = [{A: f32([1, 0], [0, 1]), B: f32([1, 2])}, {A: f32([3, 3]), B: f32([4])}]
    parts = chunks(pieces, 2)
    assert [part[A].tolist() for part in parts] == [[[1, 0], [0, 1]], [[3, 3], [0, 0]]]
    assert [part[B].tolist() for part in parts] == [[[1, 2]], [[4, 0]]]
    np.testing.assert_allclose(sum(map(product, parts)), sum(map(product, pieces)))
    assert chunks([], 2) == []


def test_layers_may_lack_a_piece():
    pieces = [{A: f32([1, 0]), B: f32([1])}, {"y.lora_A.weight": f32([1], [2], [3]), "y.lora_B.weight": f32([1, 1, 1])}]
    parts = chunks(pieces, 2)
    assert [part[A].shape for part in parts] == [(2, 2), (2, 2)]
    assert [part["y.lora_A.weight"].tolist() for part in parts] == [[[1], [2]], [[3], [0]]]


def test_a_client_adds_the_pieces_to_its_model():
    added = []
    adapters = SimpleNamespace(adapter=SimpleNamespace(rank=1), add_frozen=added.extend)
    Flora().prepare(SimpleNamespace(adapters=adapters, constants={"factors.0.0": {A: f32([1, 2]), B: f32([3])}}))
    assert [part[A].tolist() for part in added] == [[[1, 2]]]


def test_recompression_without_anything_lost():
    bank, updates = of_ranks(1)
    new, missed = recompressed(bank, [tensors for tensors, _ in updates])
    np.testing.assert_allclose(product(new), wanted(updates), atol=1e-6)
    assert missed < 1e-6


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"factors": "fedex", "adapter": {"ranks": 4}}, r"factors: 'fedex' is not made for; choose factors"),
        ({"factors": "flora", "fedopt": "fedadam"}, r"factors: 'flora' makes new factors in every round"),
        ({"factors": "fedex", "method": "olora"}, r"factors: 'fedex' makes no sense with method: 'olora'"),
        ({"factors": "flora", "robust": "median"}, r"factors: 'flora' looks at the products"),
        ({"factors": "fedex", "privacy": {"secure_aggregation": "on"}}, r"'fedex' needs products of single updates"),
        ({"factors": "flora", "privacy": {"client_dp": "on", "epsilon": 8}}, r"'flora' needs products of single"),
    ],
)
def test_what_does_not_go_together_is_said(raw, said):
    with pytest.raises(ConfigError, match=said):
        fcit.config.parse(raw)
