"""Epsilon of records against published values, closed forms and other bounds."""

import pytest

from fcit.config.privacy import Privacy
from fcit.privacy import accountant
from fcit.privacy.record_accountant import Steps, epsilon, noise_of, rate_of, record_multiplier, steps_of
from fcit.privacy.record_ledger import RecordLedger
from tests.helpers.accounting import NEEDS_ACCOUNTING

pytestmark = NEEDS_ACCOUNTING
MNIST = 256 / 60_000


@pytest.mark.parametrize(
    ("multiplier", "epochs", "published"),
    [
        (1.12, 60, 2.92),  # TensorFlow Privacy, compute_dp_sgd_privacy.py
        (1.1, 60, 3.01),  # the same, tutorials/mnist_dpsgd_tutorial.py
        (1.3, 20, 1.34),  # Bu et al. (2020, arXiv 1911.11607), figure 4: moments accountant
    ],
)
def test_published_values_by_the_moments_accountant(multiplier, epochs, published):
    """They have the conversion of Abadi et al.; that of Canonne et al. (2020) is a tenth to a fifth smaller."""
    spent = epsilon([Steps(multiplier, MNIST, epochs * 60_000 // 256)], 1e-5)
    assert 0.8 * published < spent.rdp <= published
    assert 0.8 * spent.rdp < spent.pld < spent.rdp


def test_one_step_is_a_mixture_of_two_normal_distributions():
    """delta(eps) = max over both directions of the hockey-stick divergence, here by summing over a grid."""
    import numpy as np

    z, q = 1.5, 0.3
    x = np.linspace(-30, 30, 600_001)
    density = [np.exp(-((x - mean) ** 2) / (2 * z**2)) / (z * np.sqrt(2 * np.pi)) for mean in (0, 1)]
    out, mixed = density[0], (1 - q) * density[0] + q * density[1]
    eps = epsilon([Steps(z, q, 1)], 1e-3).pld
    for slack, bound in ((0.0, 1e-3), (-2e-3, None)):
        deltas = [
            np.maximum(a - np.exp(eps + slack) * b, 0).sum() * (x[1] - x[0]) for a, b in ((mixed, out), (out, mixed))
        ]
        assert max(deltas) <= bound if bound else max(deltas) > 1e-3


def test_without_sampling_it_is_the_gaussian_mechanism():
    spent = epsilon([Steps(2.0, 1.0, 7)], 1e-5)
    assert spent.pld == pytest.approx(accountant.epsilon(2.0, 7, 1e-5).pld, abs=1e-3)


def test_trainings_compose():
    apart, together = [Steps(1.0, 0.1, 10), Steps(1.0, 0.1, 30)], [Steps(1.0, 0.1, 40)]
    assert epsilon(apart, 1e-5) == epsilon(together, 1e-5)
    assert epsilon([*apart, Steps(3.0, 0.5, 1)], 1e-5).pld > epsilon(together, 1e-5).pld


def test_nothing_trained_is_nothing_spent():
    assert epsilon([], 1e-5) == (0.0, 0.0)


@pytest.mark.parametrize(("target", "rate", "number"), [(8.0, 0.2, 50), (1.0, 1.0, 10), (2.0, 0.02, 60)])
def test_a_target_is_met_and_not_far_from(target, rate, number):
    multiplier = record_multiplier(target, 1e-5, rate, number)
    assert epsilon([Steps(multiplier, rate, number)], 1e-5).pld <= target
    assert epsilon([Steps(multiplier * 0.997, rate, number)], 1e-5).pld > target


def test_hardly_any_noise_is_no_less_than_the_least():
    assert record_multiplier(1e4, 1e-5, 0.001, 1) <= 0.02


def test_rates_and_steps():
    assert rate_of(64, 16) == 0.25
    assert rate_of(5, 16) == 1.0
    assert [steps_of(n, 16, 1) for n in (1, 16, 17)] == [1, 1, 2]
    assert steps_of(10, 16, 2) == 2


def test_noise_as_configured_or_for_all_trainings_of_the_run():
    assert noise_of(Privacy(record_noise_multiplier=1.25), 0.5, 4, 3) == 1.25
    assert noise_of(Privacy(record_epsilon=4.0), 0.5, 4, 3) == record_multiplier(4.0, 1e-5, 0.5, 12)


def test_a_record_lies_in_one_place():
    ledger = RecordLedger()
    ledger.add("3/0", Steps(1.0, 0.5, 2))
    ledger.add("3/1", Steps(1.0, 0.5, 5))
    ledger.add("3/0", Steps(1.0, 0.5, 4))
    assert ledger.epsilon(1e-5).pld == epsilon([Steps(1.0, 0.5, 6)], 1e-5).pld
    assert ledger.epsilon(1e-5, ["3/1"]).pld == epsilon([Steps(1.0, 0.5, 5)], 1e-5).pld
    assert RecordLedger().epsilon(1e-5) == (0.0, 0.0)
