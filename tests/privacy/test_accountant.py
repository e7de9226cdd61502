"""Epsilon against closed forms and published values."""

import math

import pytest

from fcit.errors import ConfigError
from fcit.privacy import accountant
from fcit.privacy.ledger import Ledger
from tests.helpers.accounting import NEEDS_ACCOUNTING

pytestmark = NEEDS_ACCOUNTING


def phi(x):
    """The normal distribution function, precise in its far end."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def delta(epsilon, mu):
    """Delta of a Gaussian mechanism of sensitivity / deviation mu (Balle and Wang, 2018, theorem 8)."""
    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("multiplier", "releases"), [(1.0, 1), (2.0, 10), (0.7, 3), (5.0, 80)])
def test_closed_form_of_gaussian_mechanisms(multiplier, releases):
    mu = math.sqrt(releases) / multiplier
    spent = accountant.epsilon(multiplier, releases, 1e-5)
    assert delta(spent.pld, mu) <= 1e-5
    assert delta(spent.pld - 1e-5, mu) > 1e-5
    assert delta(spent.replaced, 2 * mu) <= 1e-5


@pytest.mark.parametrize(("multiplier", "releases"), [(1.0, 1), (2.0, 10), (5.0, 80)])
def test_renyi_bound(multiplier, releases):
    """Mironov (2017), corollary 3 and proposition 3: a T / (2 z^2) + log(1 / delta) / (a - 1), the best order a."""
    rho = releases / (2 * multiplier**2)
    mironov = rho + 2 * math.sqrt(rho * math.log(1e5))
    spent = accountant.epsilon(multiplier, releases, 1e-5)
    assert spent.pld <= spent.rdp <= mironov


def test_published_value_of_zero_concentrated_privacy():
    """Bun and Steinke (2016), proposition 1.3: rho = 1/2 of one Gaussian mechanism with z = 1, delta = 1e-5."""
    published = 0.5 + 2 * math.sqrt(0.5 * math.log(1e5))
    assert published == pytest.approx(5.2985, abs=1e-4)
    assert accountant.epsilon(1.0, 1, 1e-5).rdp <= published


@pytest.mark.parametrize("multiplier", [0.1, 0.01])
def test_hardly_any_noise(multiplier):
    """Epsilon tends to mu^2 / 2 + mu Phi^-1(1 - delta): delta is then the chance of a larger loss."""
    mu = 1 / multiplier
    expected = mu**2 / 2 + 4.2649 * mu
    assert accountant.epsilon(multiplier, 1, 1e-5).pld == pytest.approx(expected, rel=1e-2)


def test_nothing_released_is_nothing_spent():
    assert accountant.epsilon(1.0, 0, 1e-5) == (0.0, 0.0, 0.0)


def test_releases_compose_like_less_noise():
    assert accountant.epsilon(2.0, 4, 1e-5).pld == pytest.approx(accountant.epsilon(1.0, 1, 1e-5).pld, abs=1e-3)


@pytest.mark.parametrize(("target", "releases"), [(8.0, 12), (1.0, 1), (30.0, 80)])
def test_a_target_is_met_and_not_far_from(target, releases):
    multiplier = accountant.multiplier_for(target, 1e-5, releases)
    assert accountant.epsilon(multiplier, releases, 1e-5).pld <= target
    assert accountant.epsilon(multiplier * 0.9998, releases, 1e-5).pld > target


def test_published_value_of_poisson_sampling():
    """Abadi et al. (2016), section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5: epsilon 1.26."""
    spent = accountant.epsilon(4.0, 10_000, 1e-5, 0.01)
    assert spent.pld < spent.rdp <= 1.26


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_one_sampled_release_against_its_integral(rate):
    """Delta of q N(1, z^2) + (1 - q) N(0, z^2) beside N(0, z^2), by its closed form."""
    z, spent = 1.0, accountant.epsilon(1.0, 1, 1e-5, rate)

    def beyond(epsilon):
        # The loss is above epsilon where 1 - q + q exp((2 x - 1) / (2 z^2)) > exp(epsilon).
        x = z**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
        return rate * phi((1 - x) / z) + (1 - rate) * phi(-x / z) - math.exp(epsilon) * phi(-x / z)

    assert beyond(spent.pld) <= 1e-5
    assert beyond(spent.pld - 1e-3) > 1e-5


def test_secret_sampling_lies_between_nothing_and_everything():
    rates = [0.01, 0.2, 0.9]
    values = [accountant.epsilon(1.0, 5, 1e-5, rate) for rate in rates] + [accountant.epsilon(1.0, 5, 1e-5)]
    assert [value.pld for value in values] == sorted(value.pld for value in values)
    assert all(value.pld < value.rdp for value in values)
    assert all(value.pld < value.replaced for value in values)


@pytest.mark.parametrize(
    ("target", "releases", "rate"),
    [
        pytest.param(8.0, 12, 0.2, marks=pytest.mark.thorough),
        (1.0, 4, 0.02),
        pytest.param(4.0, 3, 0.95, marks=pytest.mark.thorough),
    ],
)
def test_a_target_is_met_with_secret_sampling(target, releases, rate):
    multiplier = accountant.multiplier_for(target, 1e-5, releases, rate)
    assert accountant.epsilon(multiplier, releases, 1e-5, rate).pld <= target
    assert accountant.epsilon(multiplier * 0.999, releases, 1e-5, rate).pld > target
    assert multiplier < accountant.multiplier_for(target, 1e-5, releases)


def test_the_package_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package dp-accounting .* `pip install 'fcit\[privacy\]'`"):
        accountant.require()


def test_the_busiest_client_counts():
    ledger = Ledger(1.0, 1.0)
    for client, homes in ((3, ["0", "shared"]), (4, ["1", "shared"]), (3, ["1", "shared"])):
        ledger.count(client, homes)
    assert ledger.releases() == 2
    assert {home: ledger.releases(home) for home in ("0", "1", "shared", "9")} == {"0": 1, "1": 1, "shared": 2, "9": 0}
