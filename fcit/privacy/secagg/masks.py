"""Masks: streams of ChaCha20, added to vectors of integers modulo 2^32 or 2^64."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fcit.privacy.secagg.keys import derived

PIECE = 2**18  # numbers that are made at a time


def add(vector: np.ndarray, seed: bytes, sign: int = 1) -> None:
    """Add the mask of a seed to a vector (uint32 or uint64), in place.

    The mask of a seed is one stream of uniformly random bits: every number of it is uniform in the vector's ring, so
    that the sum is, too. (The helper in flwr 1.42 is not used: it is not public, draws masks from a Mersenne Twister
    with a seed of 32 bits, and leaves out the largest value.)

    Args:
        sign: 1 to add, -1 to subtract.
    """
    stream = Cipher(algorithms.ChaCha20(derived(seed, "mask"), bytes(16)), mode=None).encryptor()
    kind = vector.dtype.newbyteorder("<")
    operation = np.add if sign > 0 else np.subtract
    for first in range(0, len(vector), PIECE):
        piece = vector[first : first + PIECE]
        operation(piece, np.frombuffer(stream.update(bytes(piece.nbytes)), kind), out=piece)
