"""Gaussian noise that no one can compute without the server's secret."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

#: Bytes of a secret.
SECRET = 32


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
        key = hmac.new(self._secret, "/".join(map(str, owner)).encode(), hashlib.sha256).digest()
        count = int(np.prod(shape))
        pairs = (count + 1) // 2
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(16 * pairs))
        # 53 random bits each, in (0, 1]: the logarithm of 0 does not exist.
        uniform = ((np.frombuffer(stream, "<u8") >> np.uint64(11)) + 1.0) * 2.0**-53
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)
