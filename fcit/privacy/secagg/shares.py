"""Shamir's secret sharing (1979) of 16 bytes, by pycryptodome: over GF(2^128), with coefficients from the system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, islice

from Crypto.Protocol.SecretSharing import Shamir

#: Choices of shares that are tried where some of them are false.
TRIES = 64


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """``count`` shares of 16 bytes, of which any ``threshold`` give the secret back and fewer say nothing.

    Share number i (from 0) is the value of the polynomial at i + 1.
    """
    return [bytes(share) for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def combined(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> bytes | None:
    """The secret, from shares by their number; None if there are too few, or too many false ones among them.

    Shares do not show whether they are true. Where more than the threshold came, other choices are tried.

    Args:
        right: whether this is the secret.
    """
    for chosen in islice(combinations(sorted(shares), threshold), TRIES):
        secret = bytes(Shamir.combine([(number + 1, shares[number]) for number in chosen], ssss=False))
        if right(secret):
            return secret
    return None
