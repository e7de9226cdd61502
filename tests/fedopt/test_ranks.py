"""Clients of different ranks with matrices small enough to multiply by hand."""

import re
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

import fcit.config
from fcit import registry
from fcit.config import RunConfig
from fcit.errors import ConfigError
from fcit.federation import ranks
from fcit.fedopt.factors import FrozenA, Hlora, Separate, Svd
from fcit.models.ranks import cut, padded, problem, rank_of
from server.checkpoint import Progress
from server.ranks import Ranks, cost
from server.tally import Tally
from tests.fedopt.test_factors import A, B, drift, f32, fold, wanted


def of_ranks(*given: int, shape=(6, 4, 5), seed=0):
    """A server's factors, and updates of clients with these ranks that began with its leading columns."""
    old, updates = drift(len(given), shape, seed)
    old[B] = updates[0][0][B].copy()
    both = zip(updates, given, strict=True)
    return old, [({n: cut(n, t, rank) for n, t in tensors.items()}, w) for (tensors, w), rank in both]


def product(tensors) -> np.ndarray:
    return tensors[B].astype(np.float64) @ tensors[A]


# --------------------------------------------------------------------------- factors


def test_cut_and_padded_by_hand():
    a, b = f32([1, 2, 3], [4, 5, 6]), f32([1, 2], [3, 4])
    assert cut(A, a, 1).tolist() == [[1, 2, 3]]
    assert cut(B, b, 1).tolist() == [[1], [3]]
    assert padded(A, cut(A, a, 1), 3).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert padded(B, cut(B, b, 1), 2).tolist() == [[1, 0], [3, 0]]
    assert cut(A, a, 2) is a
    assert padded(A, a, 2) is a
    assert cut("multi_modal_projector.weight", a, 1) is a
    assert rank_of({A: a, B: b}) == 2


def test_padding_leaves_the_product_as_it_is():
    _, [(tensors, _)] = of_ranks(2)
    whole = {n: padded(n, t, 4) for n, t in tensors.items()}
    np.testing.assert_array_equal(product(whole), product(tensors))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (A, (2, 5), None),
        (B, (6, 1), None),
        (A, (5, 5), "smaller rank"),
        (A, (0, 5), "smaller rank"),
        (A, (2, 4), "smaller rank"),
        ("p.weight", (2, 5), "expected"),
    ],
)
def test_which_shapes_stand_for_which(name, shape, said):
    found = problem(name, shape, (6, 4) if name == B else (4, 5))
    assert found is None if said is None else said in found


# --------------------------------------------------------------------------- rules


@pytest.mark.parametrize("given", [(4, 4, 4), (1, 2, 4), (1, 1, 2)])
def test_hlora_is_the_best_of_the_servers_rank(given):
    old, updates = of_ranks(*given)
    new, error = fold(Hlora(), old, *updates)
    u, s, vt = np.linalg.svd(wanted(updates))
    np.testing.assert_allclose(product(new), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
    assert error == pytest.approx(np.linalg.norm(s[4:]) / np.linalg.norm(s), abs=1e-6)


def test_hlora_of_ranks_that_fit_is_exact():
    old, updates = of_ranks(1, 2, 1)
    new, error = fold(Hlora(), old, *updates)
    np.testing.assert_allclose(product(new), wanted(updates), atol=1e-6)
    assert error < 1e-6


def test_what_hlora_sends_is_the_best_of_the_clients_rank():
    old, updates = of_ranks(4, 4, 4)
    new, _ = fold(Hlora(), old, *updates)
    u, s, vt = np.linalg.svd(product(new))
    for rank in (1, 2, 3):
        sent = {n: cut(n, t, rank) for n, t in new.items()}
        np.testing.assert_allclose(product(sent), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5)


@pytest.mark.parametrize(("rule", "known"), [(Hlora, Svd), (Separate, Separate)])
def test_equal_ranks_are_the_known_rule_bit_for_bit(rule, known):
    old, updates = of_ranks(4, 4, 4)
    (new, error), (same, again) = fold(rule(), old, *updates), fold(known(), old, *updates)
    assert error == again
    assert all(np.array_equal(new[n], same[n]) for n in old)


def test_zeros_fill_what_a_client_lacks_by_hand():
    old = {A: f32([9, 9], [9, 9]), B: f32([9, 9])}
    new, _ = fold(Separate(), old, ({A: f32([1, 0]), B: f32([4])}, 1), ({A: f32([0, 1], [2, 2]), B: f32([8, 4])}, 3))
    assert new[A].tolist() == [[0.25, 0.75], [1.5, 1.5]]
    assert new[B].tolist() == [[7, 3]]


def test_columns_that_no_client_of_the_round_has_stay():
    old = {A: f32([9, 9], [7, 6]), B: f32([9, 5])}
    new, _ = fold(Separate(), old, ({A: f32([1, 0]), B: f32([4])}, 1), ({A: f32([0, 1]), B: f32([8])}, 1))
    assert new[A].tolist() == [[0.5, 0.5], [7, 6]]
    assert new[B].tolist() == [[6, 5]]


def test_frozen_a_is_exact_whatever_the_ranks():
    old, updates = of_ranks(1, 2, 4)
    sent = [({n: cut(n, old[A], rank_of(t)) if n == A else t[n] for n in t}, w) for t, w in updates]
    new, _ = fold(FrozenA(), old, *[({B: t[B]}, w) for t, w in sent])
    np.testing.assert_allclose(product(new), wanted(sent), atol=1e-6)


@pytest.mark.parametrize("rule", [Separate, Hlora])
def test_clients_can_come_in_any_order(rule):
    old, updates = of_ranks(1, 2, 4)
    results = [product(fold(rule(), old, *order)[0]) for order in permutations(updates)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


# --------------------------------------------------------------------------- who has which rank


def with_ranks(given, **more) -> RunConfig:
    return RunConfig.model_validate({"adapter": {"rank": 16, "ranks": given}, **more})


def test_ranks_of_clients():
    assert {ranks.assigned(with_ranks(None), client) for client in range(9)} == {16}
    assert {ranks.assigned(with_ranks(4), client) for client in range(9)} == {4}
    assert [ranks.assigned(with_ranks([2, 4, 8]), client) for client in range(3)] == [2, 4, 8]


def test_the_mean_rank():
    given = (None, 4, [2, 4, 9], {4: 0.5, 8: 0.25, 16: 0.25})
    assert [ranks.expected(with_ranks(ranks_)) for ranks_ in given] == [16, 4, 5, 8]


def test_shares_are_drawn_from_seed_and_client_alone():
    shares = {4: 0.5, 8: 0.3, 16: 0.2}
    few, many = (with_ranks(shares, federation={"clients": n}, method=m) for n, m in ((50, "disco"), (2000, "ewc")))
    drawn = [ranks.assigned(many, client) for client in range(2000)]
    assert [ranks.assigned(few, client) for client in range(50)] == drawn[:50]
    assert [drawn.count(rank) / 2000 for rank in shares] == pytest.approx(list(shares.values()), abs=0.03)
    assert [ranks.assigned(with_ranks(shares, seed=1), client) for client in range(50)] != drawn[:50]


@pytest.mark.parametrize("given", [{4: 0.5, 8: 0.4}, {0: 1.0}, [], [4, 0], "4", True, {4: -1.0, 8: 2.0}, {"x": 1.0}])
def test_ranks_that_are_none(given):
    with pytest.raises(ConfigError, match=r"adapter.ranks: must be a rank from 1 on, a share for each rank"):
        fcit.config.parse({"adapter": {"ranks": given}})


def test_ranks_survive_the_text_of_an_order():
    config = fcit.config.parse({"factors": "hlora", "adapter": {"rank": 16, "ranks": {4: 0.5, 16: 0.5}}})
    assert fcit.config.parse_text(fcit.config.dump(config), "order") == config
    adapter = config.adapter
    assert type(adapter).model_validate_json(adapter.model_dump_json()) == adapter


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"adapter": {"ranks": 16}}, r"adapter.ranks: 16 is more than adapter.rank \(8\).* raise adapter.rank to 16"),
        ({"adapter": {"ranks": [4, 8]}}, r"a list of 2 ranks, and federation.clients is 50"),
        ({"factors": "svd"}, r"factors: 'svd' is not made for; choose factors: .*hlora"),
        ({"method": "ewc"}, r"method: 'ewc' does not go with that: clients estimate .* fewer; choose one of"),
        ({"method": "joint"}, r"method: 'joint' pools all data at one participant"),
        ({"fedopt": "scaffold"}, r"fedopt: 'scaffold' sums what they return number by number"),
        ({"robust": "median"}, r"robust: 'median' compares or adds updates number by number"),
        ({"privacy": {"secure_aggregation": "on"}}, r"secure_aggregation: 'on' compares or adds"),
        ({"privacy": {"client_dp": "on", "epsilon": 8}}, r"client_dp: 'on' compares or adds"),
        ({"adapter": {"ranks": 4, "min_rank": 2}}, r"adapter.min_rank: 2 has no effect with factors: 'separate'"),
        ({"sites": {"min_rank": 6}, "adapter": {"ranks": 4}}, r"sites.min_rank: 6 is more than the smallest rank"),
        (
            {"federation": {"mode": "async"}, "devices": {"profile": "lognormal"}},
            r"federation.mode: 'async' compares or adds",
        ),
        ({"setting": "centralised"}, r"adapter.ranks: 4 is about several clients"),
    ],
)
def test_what_does_not_go_together_is_said(raw, said):
    with pytest.raises(ConfigError, match=said):
        fcit.config.parse({"adapter": {"ranks": 4}, **raw})


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_every_method_takes_different_ranks_or_says_why_not(name):
    kind, raw = registry.resolve("method", name), {"method": name, "adapter": {"ranks": 4}}
    if kind.mixes_ranks:
        assert fcit.config.parse(raw).adapter.ranks == 4
        return
    why = "pools all data" if kind.pooled else kind.whole_rank
    assert why
    with pytest.raises(ConfigError, match=re.escape(why)):
        fcit.config.parse(raw)


def test_methods_that_take_different_ranks_are_named_by_the_registry():
    with pytest.raises(ConfigError) as refused:
        fcit.config.parse({"method": "moelora", "adapter": {"ranks": 4}})
    able = [name for name in sorted(registry.METHODS) if registry.resolve("method", name).mixes_ranks]
    assert f"choose one of {', '.join(able)}, or" in str(refused.value)
    assert len(able) > 10


# --------------------------------------------------------------------------- at the server


def server_ranks(**adapter) -> Ranks:
    raw = {"factors": "hlora", "adapter": {"rank": 4, **adapter}, "federation": {"clients": 5}}
    return Ranks(fcit.config.parse(raw), Progress())


def test_clients_of_one_rank_are_sent_the_same_views():
    ranks = server_ranks(ranks=[2, 4, 2, 1, 4])
    bank = {A: np.ones((4, 3), np.float32), B: np.ones((2, 4), np.float32), "p.weight": f32([1])}
    sent = [ranks.sent("0", bank, client) for client in range(5)]
    assert [rank_of(tensors) for tensors in sent] == [2, 4, 2, 1, 4]
    assert all(sent[0][name] is sent[2][name] for name in bank)
    assert all(sent[1][name] is bank[name] for name in bank)
    assert all(tensors["p.weight"] is bank["p.weight"] for tensors in sent)
    after = {**bank, A: bank[A] + 1}
    assert ranks.sent("0", after, 0)[A].max() == 2
    assert ranks.sent("0", after, 0)[B] is sent[0][B]


def test_equal_ranks_are_sent_as_ever():
    ranks, bank = server_ranks(), {A: np.ones((4, 3), np.float32)}
    assert ranks.sent("0", bank, 3) is bank
    assert ranks.count([], {}) == {}


def test_a_sites_own_rank_counts_within_the_runs_bounds():
    config = fcit.config.parse({"factors": "hlora", "adapter": {"rank": 8}, "sites": {"min_rank": 2}})
    ranks = Ranks(config, Progress())
    ranks.afforded |= {1: 4, 2: 1, 3: 16}
    assert [ranks.of(client) for client in range(4)] == [8, 4, 2, 8]


def test_bytes_are_counted_by_client_and_rank():
    ranks = server_ranks(ranks=[2, 4, 2, 1, 4])
    ranks.sent("0", {A: np.ones((4, 3), np.float32)}, 0)
    heads = [SimpleNamespace(client=client) for client in (0, 1, 2)]
    event = ranks.count([*heads, None], {0: (10, 5), 1: (20, 9), 2: (12, 7)})
    assert event == {"ranks": {0: 2, 1: 4, 2: 2}, "client_bytes": {0: [10, 5], 1: [20, 9], 2: [12, 7]}}
    assert not ranks._views  # of tensors that are no longer the server's
    table = cost(ranks.progress)["by_rank"]
    assert table == {
        "2": {"client_rounds": 2, "down": 11, "up": 6},
        "4": {"client_rounds": 1, "down": 20, "up": 9},
    }
    assert cost(Progress()) == {}


def test_a_tally_knows_clients_by_their_node():
    traffic, tally = {"down": 0, "up": 0}, Tally(lambda: {1007: 7})
    tally.add(traffic, 1007, down=3)
    tally.add(traffic, 1007, up=2)
    tally.add(traffic, 1008, up=1)
    assert traffic == {"down": 3, "up": 3}
    assert tally.take() == {7: (3, 2)}
    assert tally.take() == {}
