"""Epsilon of a run and the noise multiplier of an epsilon, by ``dp-accounting`` (imported here only, when needed).

One release is a Gaussian mechanism of noise multiplier z for a client that takes part in it, and nothing for any other.

Where participants follow from the seed, which is public, there is no amplification by sampling: epsilon is that of T
Gaussian mechanisms, T the number of releases of the client that takes part most often. Where each client takes part
with probability q, which the server draws in secret, every release is a Poisson-subsampled Gaussian mechanism (Abadi et
al., 2016; Mironov et al., 2019, arXiv 1908.10530; Koskela et al., 2020, for its privacy loss) for every client, and T
is the number of all releases. These bounds are for a record that is there or not; the sum is divided by the expected
number of clients, so that a client whose contribution is zero changes nothing, as if it were not there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from fcit.errors import ConfigError

#: Grid of privacy losses, per unit of 1 / z where that is more than 1: the bound is above the true value by a
#: thousandth part or less, where epsilon is below 20 by less than 1e-6.
GRID = 1e-3
#: Share by which a computed noise multiplier is larger than the exact one, so that the bound stays within epsilon.
MARGIN = 5e-5


#: Orders of Rényi divergence of subsampled mechanisms: whole ones have a closed form (Mironov et al., section 3.3).
ORDERS = (*range(2, 65), *range(72, 257, 8), 512, 1024)


class Epsilon(NamedTuple):
    """Upper bounds of one epsilon.

    Attributes:
        pld: by the distribution of the privacy loss, the tightest; for a client's contribution replaced by zero.
        rdp: by Rényi divergences (Mironov, 2017), for the same.
        replaced: by the distribution of the privacy loss, for a client's data replaced by any others.
    """

    pld: float
    rdp: float
    replaced: float


def require(key: str = "privacy.client_dp: 'on'") -> None:
    """Make sure that ``dp-accounting`` is installed.

    Args:
        key: what needs it.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("dp_accounting") is None:
        raise ConfigError(
            f"{key} needs the package dp-accounting for its epsilon; `pip install 'fcit[privacy]'` installs it"
        )


@lru_cache(maxsize=1024)
def epsilon(multiplier: float, releases: int, delta: float, rate: float = 1.0) -> Epsilon:
    """Epsilon of so many releases of noise multiplier z.

    Args:
        rate: probability q that a client takes part in a release, if that is secret; 1: it took part in all of them.
    """
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    if not releases:
        return Epsilon(0.0, 0.0, 0.0)
    if rate < 1:
        return _sampled(multiplier, releases, delta, rate)
    rdp = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    rdp.compose(dp_accounting.GaussianDpEvent(multiplier), releases)
    once = multiplier / math.sqrt(releases)
    # Replaced, an update moves the sum by up to 2 C instead of C.
    return Epsilon(_pld(once, delta), float(rdp.get_epsilon(delta)), _pld(once / 2, delta))


def _sampled(multiplier: float, releases: int, delta: float, rate: float) -> Epsilon:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    zero, other = (
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL,  # the same privacy loss as a client that is there or not
        dp_accounting.NeighboringRelation.REPLACE_ONE,  # q N(+C) + (1 - q) N(0) beside q N(-C) + (1 - q) N(0)
    )
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    rdp = RdpAccountant(ORDERS, zero)
    rdp.compose(event, releases)
    pld, replaced = (
        _accountant(multiplier, relation).compose(event, releases).get_epsilon(delta) for relation in (zero, other)
    )
    return Epsilon(float(pld), float(rdp.get_epsilon(delta)), float(replaced))


def _pld(multiplier: float, delta: float) -> float:
    import dp_accounting

    accountant = _accountant(multiplier, dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    return float(accountant.compose(dp_accounting.GaussianDpEvent(multiplier)).get_epsilon(delta))


def _accountant(multiplier: float, relation: Any) -> Any:
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(relation, value_discretization_interval=GRID * max(1.0, 1 / multiplier))


def multiplier_for(epsilon: float, delta: float, releases: int, rate: float = 1.0) -> float:
    """A noise multiplier with which so many releases stay within (epsilon, delta), hardly more than necessary.

    T Gaussian mechanisms of z are one of z / sqrt T (Dong et al., 2022, corollary 3.3), whose smallest z has a
    closed form (Balle and Wang, 2018, theorem 8). With secret sampling z is searched for with the accountant,
    between that value and the least noise of a single release, whose epsilon' and delta' without sampling are
    epsilon <= log(1 + q (e^epsilon' - 1)) and delta = q delta' (Balle et al., 2018, theorem 8).

    Args:
        rate: as for :func:`epsilon`.
    """
    if rate == 1:
        return _closed(epsilon, delta) * math.sqrt(releases)
    import dp_accounting
    from dp_accounting.mechanism_calibration import ExplicitBracketInterval, calibrate_dp_mechanism

    once = math.log1p(math.expm1(epsilon) / rate) if epsilon < 500 else epsilon - math.log(rate)
    low = _closed(once, min(delta / rate, 0.5)) * 0.99
    high = _closed(epsilon, delta) * math.sqrt(releases) * 1.01

    def event(multiplier: float) -> Any:
        sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
        return dp_accounting.SelfComposedDpEvent(sampled, releases)

    def fresh() -> Any:
        return _accountant(low, dp_accounting.NeighboringRelation.REPLACE_SPECIAL)

    between = ExplicitBracketInterval(low, high)
    found = calibrate_dp_mechanism(fresh, event, epsilon, delta, between, tol=MARGIN * low)
    return float(found * (1 + 2 * MARGIN))


def _closed(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier of one Gaussian mechanism, and a little more."""
    from dp_accounting.pld import common, privacy_loss_mechanism

    asked = common.DifferentialPrivacyParameters(epsilon, delta)
    smallest = privacy_loss_mechanism.GaussianPrivacyLoss.from_privacy_guarantee(asked).standard_deviation
    return float(smallest * (1 + MARGIN))
