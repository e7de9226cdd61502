"""Noise on descriptions of shards: what is added, what it spends, and what the server makes of it."""

import numpy as np
import pytest

from fcit import config as configuration
from fcit.methods.base import Method, Stats
from fcit.methods.disco import Disco
from fcit.privacy import tokens
from fcit.privacy.noise import Noise
from server import token_privacy
from server.descriptions import outliers
from tests.helpers.accounting import NEEDS_ACCOUNTING
from tests.privacy.test_accountant import delta

pytestmark = NEEDS_ACCOUNTING
KEY = bytes(range(32))


def parsed(**privacy):
    return configuration.parse({"method": "disco", "privacy": privacy})


def test_features_are_shortened_to_length_one():
    rows = tokens.clipped(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=np.float32))
    assert np.linalg.norm(rows, axis=1).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert rows[0].tolist() == pytest.approx([0.6, 0.8])
    assert rows.dtype == np.float64


def test_a_record_moves_a_sum_by_one_at_most():
    features = np.random.default_rng(0).normal(size=(20, 8)) * 10
    difference = tokens.clipped(features).sum(axis=0) - tokens.clipped(features[1:]).sum(axis=0)
    assert np.linalg.norm(difference) == pytest.approx(tokens.CLIP)


def test_the_noise_has_the_configured_deviation():
    total = np.zeros(100_000)
    drawn = tokens.noised(total, 2.5, Noise(KEY), 3)
    assert drawn.std() == pytest.approx(2.5, rel=0.02)
    assert abs(drawn.mean()) < 0.05


def test_a_shard_described_again_has_the_same_noise_and_another_sum_other_noise():
    total = np.ones(8)
    first = tokens.noised(total, 1.0, Noise(KEY), 3)
    assert tokens.noised(total, 1.0, Noise(KEY), 3).tolist() == first.tolist()
    for other in (
        tokens.noised(total + 1, 1.0, Noise(KEY), 3) - 1,
        tokens.noised(total, 1.5, Noise(KEY), 3),
        tokens.noised(total, 1.0, Noise(bytes(32)), 3),
        tokens.noised(total, 1.0, Noise(KEY), 4),
    ):
        assert not np.allclose(other, first)


def test_equal_noise_would_not_be_scaled():
    """With one draw for two multipliers, the sum could be computed from both descriptions."""
    total = np.zeros(8)
    one, two = (tokens.noised(total, z, Noise(KEY), 3) / z for z in (1.0, 2.0))
    assert not np.allclose(one, two)


@pytest.mark.parametrize("epsilon", [0.5, 4.0, 16.0])
def test_the_noise_of_an_epsilon(epsilon):
    """Against the closed form of Balle and Wang (2018), theorem 8."""
    multiplier = tokens.multiplier(parsed(token_epsilon=epsilon, token_delta=1e-6).privacy)
    assert delta(epsilon, 1 / multiplier) <= 1e-6
    assert delta(epsilon, 1 / (0.999 * multiplier)) > 1e-6


def test_a_given_multiplier_is_used():
    assert tokens.multiplier(parsed(token_noise_multiplier=0.7).privacy) == 0.7
    assert not parsed().privacy.tokens


def test_what_descriptions_have_spent():
    config = parsed(token_epsilon=2.0)
    spent = token_privacy.spent(config, ["0/a", "0/b", "1/a", "0/c"])
    assert 1.99 < spent["epsilon"] <= 2.0
    assert spent["shards"] == 3
    assert spent["epsilon"] < spent["epsilon_all"] < 3 * spent["epsilon"]
    assert spent["epsilon_replaced"] > spent["epsilon"]
    assert token_privacy.spent(config, [])["epsilon"] == 0


def test_noisy_means_are_judged_by_the_noise_they_have():
    stats = {(0, "a"): Stats(np.full(4, 10.0), 2), (1, "a"): Stats(np.full(4, 1.0), 2), (2, "a"): Stats(np.ones(4), 2)}
    method = Disco(parsed(token_noise_multiplier=1.0))
    assert list(outliers(stats, method, [])) == [(0, "a")]  # four times the median
    assert outliers(stats, method, [], noise=3.0) == {}
    rejected = outliers(stats, method, [], noise=1.0)
    assert list(rejected) == [(0, "a")]
    assert "with its noise it can have 5" in rejected[0, "a"]


def test_the_bound_on_a_noisy_mean_is_hardly_ever_exceeded():
    draws = np.random.default_rng(0).normal(size=(2000, 64))
    assert np.linalg.norm(draws, axis=1).max() + 1 < tokens.longest(1.0, 64, 1)
    assert tokens.longest(1.0, 64, 10) < 0.2 * tokens.longest(1.0, 64, 1) + 1


def test_statistics_of_a_methods_own_have_no_noise(monkeypatch):
    monkeypatch.setattr(Disco, "describe", lambda self, features: Method.describe(self, features))
    with pytest.raises(configuration.ConfigError, match="statistics of its own, whose sensitivity is not known"):
        parsed(token_epsilon=1.0)
