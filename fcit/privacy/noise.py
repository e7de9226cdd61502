"""Gaussian noise, and batches, that no one can compute without the secret of who draws them."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

#: Bytes of a secret.
SECRET = 32
PIECE = 2**20  # numbers that are made at a time: a whole projector's random bits would take several times its memory


def fresh() -> bytes:
    """A new secret, from the operating system."""
    return secrets.token_bytes(SECRET)


def published(seed: int) -> bytes:
    """The secret of ``privacy.reproducible_noise``: anyone who knows the seed knows it."""
    return hashlib.sha256(f"reproducible noise/{seed}".encode()).digest()


class Noise:
    """Draws that are a function of (secret, owner) and look random without the secret.

    The seeded generators of :mod:`fcit.seeding` do not serve: the seed is in every order, so clients could subtract
    the noise. The bits come from ChaCha20, keyed by HMAC-SHA256 of the owner, and become normal numbers by
    the formula of Box and Muller (1958).
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def normal(self, shape: tuple[int, ...], *owner: int | str) -> np.ndarray:
        """Standard normal numbers (float64) that belong to ``owner``."""
        stream = Cipher(algorithms.ChaCha20(self._key(*owner), bytes(16)), mode=None).encryptor()
        drawn = np.empty(int(np.prod(shape)))
        for first in range(0, len(drawn), PIECE):
            piece = drawn[first : first + PIECE]
            pairs = (len(piece) + 1) // 2
            piece[:] = _pairs(stream.update(bytes(16 * pairs)))[: len(piece)]
        return drawn.reshape(shape)

    def chosen(self, count: int, rate: float, *owner: int | str) -> list[int]:
        """A Poisson sample that belongs to ``owner``: each of the numbers below ``count`` with probability ``rate``."""
        stream = Cipher(algorithms.ChaCha20(self._key(*owner), bytes(16)), mode=None).encryptor()
        return [int(i) for i in np.flatnonzero(_uniform(stream.update(bytes(8 * count))) <= rate)]

    def seed(self, *owner: int | str) -> int:
        """A seed for other generators that belongs to ``owner``."""
        return int.from_bytes(self._key(*owner))

    def _key(self, *owner: int | str) -> bytes:
        return hmac.new(self._secret, "/".join(map(str, owner)).encode(), hashlib.sha256).digest()


def _uniform(bits: bytes) -> np.ndarray:
    """A number in (0, 1] of 53 random bits for every 8 random bytes."""
    return ((np.frombuffer(bits, "<u8") >> np.uint64(11)) + 1.0) * 2.0**-53


def _pairs(bits: bytes) -> np.ndarray:
    """As many normal numbers as there are groups of 8 random bytes, an even number."""
    first, second = np.split(_uniform(bits), 2)  # none is 0, whose logarithm does not exist
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
