"""Differential privacy of the records behind an identity token, added where the records are.

A shard is described by the sum of the identity features f_i of its records and by their number. Every feature is
shortened to length C = 1 and the client adds noise to the sum, the Gaussian mechanism of Dwork and Roth (2014, appendix
A) with the noise of Balle and Wang (2018, arXiv 1805.06530, theorem 8):

    sum_i min(1, C / ||f_i||) f_i + N(0, (z C)^2 I)

Neighbours are shards that differ in one record, added or removed: the sums differ by C at most. The number of records
is not noised and not covered: it goes to the server with every update as well.

Cosines, which are all that DISCO computes from tokens, do not depend on the length of a token. Features of CLIP have
nearly one length, well above 1 (its last layer normalises them), so that shortening them leaves directions alone.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fcit.config.token_privacy import TokenPrivacy
from fcit.privacy import accountant
from fcit.privacy.accountant import Epsilon
from fcit.privacy.noise import Noise

#: C: the length that features are shortened to.
CLIP = 1.0
#: Deviations by which the length of the noise exceeds its expectation less often than once in 10^7 descriptions.
RARE = 6.0


def multiplier(privacy: TokenPrivacy) -> float:
    """z: the noise multiplier of a description."""
    if privacy.token_epsilon is not None:
        return accountant.multiplier_for(privacy.token_epsilon, privacy.token_delta, 1)
    assert privacy.token_noise_multiplier is not None  # called where one of both is given
    return privacy.token_noise_multiplier


def clipped(features: np.ndarray) -> np.ndarray:
    """Features ``(N, d)``, float64, none longer than :data:`CLIP`."""
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1.0, CLIP / np.maximum(lengths, np.finfo(np.float64).tiny))


def noised(total: np.ndarray, multiplier: float, noise: Noise, *owner: int | str) -> np.ndarray:
    """A feature sum ``(d,)`` with the client's noise.

    The noise depends on the sum, too, by a keyed hash: a shard that is described again, after a crash or because its
    description was refused, has the same noise and tells nothing new. With other noise their mean would have less, and
    with equal noise on two sums their difference would have none.
    """
    mark = hashlib.sha256(total.tobytes()).hexdigest()
    return total + multiplier * CLIP * noise.normal(total.shape, "token", repr(multiplier), mark, *owner)


def longest(multiplier: float, width: int, count: int) -> float:
    """The length that the mean feature of ``count`` records hardly ever exceeds.

    A normal vector of d numbers is longer than sqrt(d) + t with probability exp(-t^2 / 2) at most (Boucheron et al.,
    2013, theorem 5.6).
    """
    return CLIP + multiplier * CLIP * (float(np.sqrt(width)) + RARE) / count


def epsilon(multiplier: float, delta: float, shards: int = 1) -> Epsilon:
    """Epsilon of a record that is part of so many shards."""
    return accountant.epsilon(multiplier, shards, delta)
