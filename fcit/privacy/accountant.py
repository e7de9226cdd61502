"""Epsilon of a run and the noise multiplier of an epsilon, by ``dp-accounting`` (imported here only, when needed).

One release is a Gaussian mechanism of noise multiplier z for a client that takes part in it, and nothing for any other.
Participants follow from the seed, which is public, so there is no amplification by sampling: epsilon is that of T
Gaussian mechanisms, T the number of releases of the client that takes part most often.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

from fcit.errors import ConfigError

#: Grid of privacy losses, per unit of 1 / z where that is more than 1: the bound is above the true value by a
#: thousandth part or less, where epsilon is below 20 by less than 1e-6.
GRID = 1e-3
#: Share by which a computed noise multiplier is larger than the exact one, so that the bound stays within epsilon.
MARGIN = 5e-5


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
def epsilon(multiplier: float, releases: int, delta: float) -> Epsilon:
    """Epsilon of so many releases of noise multiplier z."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    if not releases:
        return Epsilon(0.0, 0.0, 0.0)
    rdp = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    rdp.compose(dp_accounting.GaussianDpEvent(multiplier), releases)
    once = multiplier / math.sqrt(releases)
    # Replaced, an update moves the sum by up to 2 C instead of C.
    return Epsilon(_pld(once, delta), float(rdp.get_epsilon(delta)), _pld(once / 2, delta))


def _pld(multiplier: float, delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
        value_discretization_interval=GRID * max(1.0, 1 / multiplier),
    )
    return float(accountant.compose(dp_accounting.GaussianDpEvent(multiplier)).get_epsilon(delta))


def multiplier_for(epsilon: float, delta: float, releases: int) -> float:
    """A noise multiplier with which so many releases stay within (epsilon, delta), at most 1e-4 more than necessary.

    T Gaussian mechanisms of z are one of z / sqrt T (Dong et al., 2022, corollary 3.3), whose smallest z has a
    closed form (Balle and Wang, 2018, theorem 8).
    """
    from dp_accounting.pld import common, privacy_loss_mechanism

    asked = common.DifferentialPrivacyParameters(epsilon, delta)
    smallest = privacy_loss_mechanism.GaussianPrivacyLoss.from_privacy_guarantee(asked).standard_deviation
    return float(smallest * (1 + MARGIN) * math.sqrt(releases))
