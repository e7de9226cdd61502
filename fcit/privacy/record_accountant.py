"""Epsilon of DP-SGD for one record, and the noise multiplier of an epsilon, by ``dp-accounting`` (imported late).

A step is a Gaussian mechanism on a batch that every record is in with probability q, independently of all others and of
all other steps (Poisson sampling): Abadi et al., 2016 (arXiv 1607.00133), section 3.1; Mironov et al., 2019 (arXiv
1908.10530) for the Rényi divergences; Koskela et al., 2020 (arXiv 1906.03049) for the distribution of the privacy loss.
Neighbours differ in one record that is added or removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from fcit.config.privacy import Privacy
from fcit.privacy.accountant import GRID, multiplier_for

#: A computed noise multiplier is above the smallest one by at most this share.
TOLERANCE = 1e-3
LEAST = 0.01  # noise multiplier; less protects no one
#: Orders of the Rényi divergence. Below 2 the series of Mironov et al. need not converge, and dp-accounting warns.
_ORDERS = [*(1 + x / 4 for x in range(4, 40)), *range(11, 65), 80, 128, 256, 512, 1024]


class Steps(NamedTuple):
    """Equal steps of DP-SGD.

    Attributes:
        multiplier: noise multiplier z.
        rate: probability q that a record is in the batch of a step.
        number: of steps.
    """

    multiplier: float
    rate: float
    number: int


class RecordEpsilon(NamedTuple):
    """Upper bounds of one epsilon: by the distribution of the privacy loss, and by Rényi divergences."""

    pld: float
    rdp: float


def rate_of(records: int, batch_size: int) -> float:
    """Sampling rate q with which a batch has ``batch_size`` records on average; 1 where there are not as many."""
    return min(1.0, batch_size / records)


def steps_of(records: int, batch_size: int, epochs: int) -> int:
    """Steps of a local training: as many as batches of ``batch_size`` records in so many epochs."""
    return -(-records * epochs // batch_size)


def noise_of(privacy: Privacy, rate: float, number: int, participations: int) -> float:
    """The noise multiplier of a client's steps, as configured or computed from an epsilon.

    Args:
        number: of steps of one local training.
        participations: how often the client trains on these records in the whole run.
    """
    if privacy.record_noise_multiplier is not None:
        return privacy.record_noise_multiplier
    assert privacy.record_epsilon is not None  # one of both is given (fcit.config.record_checks)
    return record_multiplier(privacy.record_epsilon, privacy.record_delta, rate, number * max(1, participations))


def epsilon(steps: Iterable[Steps], delta: float) -> RecordEpsilon:
    """Epsilon of a record that all these steps can have drawn."""
    merged: dict[tuple[float, float], int] = {}
    for multiplier, rate, number in steps:
        merged[multiplier, rate] = merged.get((multiplier, rate), 0) + number
    return _epsilon(tuple(Steps(*key, number) for key, number in sorted(merged.items())), delta)


@lru_cache(maxsize=4096)
def _epsilon(steps: tuple[Steps, ...], delta: float) -> RecordEpsilon:
    from dp_accounting.rdp import RdpAccountant

    if not steps:
        return RecordEpsilon(0.0, 0.0)
    rdp = RdpAccountant(orders=_ORDERS)
    for each in steps:
        rdp.compose(_event(each))
    return RecordEpsilon(_pld(steps, delta), float(rdp.get_epsilon(delta)))


def _pld(steps: tuple[Steps, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    grid = GRID * max(1.0, *(1 / each.multiplier for each in steps))
    pld = PLDAccountant(value_discretization_interval=grid)
    for each in steps:
        pld.compose(_event(each))
    return float(pld.get_epsilon(delta))


def _event(steps: Steps) -> Any:
    import dp_accounting

    step = dp_accounting.PoissonSampledDpEvent(steps.rate, dp_accounting.GaussianDpEvent(steps.multiplier))
    return dp_accounting.SelfComposedDpEvent(step, steps.number)


@lru_cache(maxsize=1024)
def record_multiplier(epsilon: float, delta: float, rate: float, number: int) -> float:
    """A noise multiplier with which so many steps stay within (epsilon, delta), at most :data:`TOLERANCE` too large."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    low = multiplier_for(epsilon, delta, number)  # enough without sampling
    while _pld((Steps(low, rate, number),), delta) < epsilon:
        if low <= LEAST:
            return low
        low /= 2
    return float(
        dp_accounting.calibrate_dp_mechanism(
            lambda: PLDAccountant(value_discretization_interval=GRID * max(1.0, 1 / low)),
            lambda multiplier: _event(Steps(multiplier, rate, number)),
            epsilon,
            delta,
            dp_accounting.ExplicitBracketInterval(low, 2 * low),
            tol=TOLERANCE * low / 2,
        )
    )
