"""The arithmetic of the attacks of ``tests.evidence.membership`` and ``.inversion``, on made-up numbers."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from tests.evidence.leaks import page, scores, tokens, updates

MEMBER = np.array([True, True, False, False])


def test_auc_counts_pairs():
    assert scores.auc(np.array([3.0, 1.0, 2.0, 0.0]), MEMBER) == 0.75


def test_auc_counts_ties_half():
    assert scores.auc(np.zeros(4), MEMBER) == 0.5


def test_an_attack_on_members_alone_is_refused():
    with pytest.raises(ValueError, match="needs members and others to be measured on, got 2 and 0"):
        scores.auc(np.zeros(2), np.ones(2, dtype=bool))


def test_an_attack_without_a_score_is_refused():
    with pytest.raises(ValueError, match="has no score for some record"):
        scores.auc(np.array([1.0, np.nan, 0.0, 0.0]), MEMBER)


def test_true_positives_at_a_rate_of_false_ones():
    outside = np.arange(100.0)
    inside = np.array([98.5, 99.5, 97.5, 200.0])  # one in a hundred of the others, 99, may be exceeded
    found = np.concatenate([inside, outside])
    assert scores.tpr_at(found, np.arange(104) < 4, 0.01) == 0.75


def test_a_constant_score_finds_no_one():
    assert scores.tpr_at(np.zeros(4), MEMBER) == 0.0


def test_the_interval_of_a_perfect_attack_is_a_point():
    found = np.tile([1.0, 0.0], (10, 1))
    assert scores.interval(scores.auc, found, found > 0) == (1.0, 1.0)


def test_logit_of_an_answer():
    assert scores.logit(np.array([-math.log(0.8)]))[0] == pytest.approx(math.log(4.0))


def test_lira_is_the_log_ratio_of_the_two_normal_densities():
    """Records whose confidence is N(2, 1) for members and N(-1, 1/4) for others."""
    rng = np.random.default_rng(0)
    member = rng.random((400, 20)) < 0.5
    confidence = np.where(member, rng.normal(2, 1, member.shape), rng.normal(-1, 0.5, member.shape))
    inside, outside = NormalDist(2, 1), NormalDist(-1, 0.5)
    exact = np.vectorize(lambda c: math.log(inside.pdf(c) / outside.pdf(c)))(confidence)
    found = scores.lira(confidence, member)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.999
    assert np.abs(found - exact).mean() < 0.1 * exact.std()


def test_lira_sees_what_a_common_threshold_does_not():
    """Every record has its own level, far more different than membership makes them."""
    rng = np.random.default_rng(0)
    member = rng.random((64, 50)) < 0.5
    confidence = rng.normal(0, 20, 50) + member + rng.normal(0, 0.3, member.shape)
    assert scores.auc(confidence.ravel(), member.ravel()) < 0.6
    assert scores.auc(scores.lira(confidence, member).ravel(), member.ravel()) > 0.95


def test_lira_says_nothing_of_a_record_that_every_other_model_had():
    member = np.ones((6, 2), dtype=bool)
    member[:3, 1] = False
    found = scores.lira(np.zeros((6, 2)), member)
    assert np.isnan(found[:, 0]).all()
    assert not np.isnan(found[:, 1]).any()


@pytest.mark.parametrize(("multiplier", "releases"), [(1.0, 1), (2.0, 9)])
def test_no_attack_beats_the_bound(multiplier, releases):
    """The best test of N(0, 1) against N(sqrt(T) / z, 1) has the bound's power."""
    rng = np.random.default_rng(0)
    member = np.arange(200_000) < 100_000
    found = rng.normal(0, 1, len(member)) + member * math.sqrt(releases) / multiplier
    assert scores.tpr_at(found, member) == pytest.approx(scores.bound(multiplier, releases), abs=0.01)


def test_wilson_interval():
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert scores.shares([True] * 81 + [False] * 182)["interval"] == [0.2553, 0.3662]


def test_nonnegative_least_squares():
    """A matrix of Lawson and Hanson's kind: the unconstrained solution, (-1, 2), is not allowed."""
    matrix, target = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), np.array([1.0, 2.0, 5.0])
    assert tokens.nonnegative(matrix, target).tolist() == pytest.approx([0.0, 1.5])


def test_questions_of_a_token_are_counted():
    """Twelve records of 300 questions, more than a token of 64 numbers can tell apart linearly."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 64)).astype(np.float32)
    counts = np.zeros(300, dtype=int)
    counts[[3, 70, 200, 201]] = [5, 1, 4, 2]
    assert tokens.counted(features.T.astype(np.float64) @ counts, 12, features).tolist() == counts.tolist()


def test_the_nearest_question_is_first():
    features = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert tokens.nearest(np.array([6.0, 8.0]), features).tolist() == [1, 2, 0]


def test_the_gradient_of_a_first_step_of_adamw():
    """To a few percent, although the step is hardly more than its sign."""
    gradient = torch.tensor([3e-3, -2e-4, 5e-6, 0.0, -7e-8])
    weight = torch.nn.Parameter(torch.zeros(5))
    weight.grad = gradient
    torch.optim.AdamW([weight], lr=3e-3, weight_decay=0.0, foreach=True).step()
    found = updates.gradients(weight.detach().numpy().astype(np.float64), 3e-3)
    assert found == pytest.approx(gradient.numpy(), rel=0.1)


def test_a_replay_finds_the_right_one_of_three():
    """Plain LoRA on a linear layer, one step of a sign, as AdamW's first: the update of the third record."""
    rng = np.random.default_rng(0)
    records, a, g = rng.normal(size=(3, 16)), rng.normal(size=(4, 16)), rng.normal(size=(3, 8))
    updates_of = np.stack([-np.sign(np.outer(g[i], a @ records[i])).ravel() for i in range(3)])
    assert updates.Replayed(updates_of).weights(updates_of[2]) == pytest.approx([0, 0, np.sqrt(32)])


def test_a_replay_tells_the_two_records_of_a_sum():
    rng = np.random.default_rng(0)
    own = rng.normal(size=(6, 50))
    weights = updates.Replayed(own).weights(0.5 * own[1] + 0.5 * own[4] + rng.normal(0, 0.05, 50))
    true = np.isin(np.arange(6), [1, 4])
    assert updates.found(weights, true) == 1.0


def test_the_token_that_is_taught():
    """One answer position: what moved is a token's embedding, times a row."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(50, 32))
    moved = np.outer(embeddings[17] - embeddings.mean(axis=0), rng.normal(size=8))
    order = updates.taught(moved, embeddings, known=4)
    assert order[0] == 17
    assert sorted([*order, 4]) == list(range(50))


def test_the_page_has_the_tables_of_the_results():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run `python -m tests.evidence.leaks.page`"
