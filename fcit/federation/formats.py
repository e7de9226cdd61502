"""Shorter number formats of float32 on the wire: bfloat16, and int8 in blocks with a scale each.

bfloat16 is the upper half of a float32, rounded to nearest even. int8 is the uniform quantiser of QSGD (Alistarh et
al., 2017, arXiv 1610.02132) with the largest absolute value of a block in the place of its 2-norm, rounded to nearest:

    s = max |x_i| / 127 over a block of 64, rounded up to a bfloat16;  q_i = round(x_i / s);  x_i ~ s q_i

which needs 8.25 bits a number. |x_i - s q_i| <= s / 2. Rounding to nearest is biased (QSGD's random rounding is not),
but its error is half as large at most, it needs no random numbers, and it is what error feedback is made for
(:mod:`fcit.federation.thin`).
"""

from __future__ import annotations

import numpy as np

#: Numbers that have a scale in common.
BLOCK = 64
#: Largest code of int8; -128 is none, so that codes are symmetric.
MOST_CODE = 127


def to_bfloat16(value: np.ndarray) -> np.ndarray:
    """float32 to its upper 16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded[np.isnan(value)] = 0x7FC0  # rounding would turn some NaNs into zeros
    return rounded.astype("<u2")


def from_bfloat16(value: np.ndarray) -> np.ndarray:
    """The inverse, as float32."""
    return (value.astype(np.uint32) << 16).view(np.float32)


def blocks(count: int) -> int:
    """Blocks, and so scales, of so many numbers."""
    return -(-count // BLOCK)


#: Bytes of a number in each format, the scale of its block included.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 2 / BLOCK}
#: The same of numbers that are not trained, under each ``federation.wire``.
BESIDE = {"float32": 4.0, "bfloat16": 2.0, "int8": 2.0}


def to_blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 ``(n,)`` and scales float32 ``(blocks(n),)`` of finite ``values`` ``(n,)``; a scale is a bfloat16."""
    padded = np.zeros((blocks(values.size), BLOCK), np.float32)
    padded.reshape(-1)[: values.size] = values
    highest = np.abs(padded).max(axis=1, initial=0.0) / np.float32(MOST_CODE)
    scales = from_bfloat16((highest.view(np.uint32) + np.uint32(0xFFFF)) >> 16)  # up: no code is beyond MOST_CODE
    codes = np.rint(np.divide(padded, scales[:, None], out=padded, where=scales[:, None] > 0))
    return codes.reshape(-1)[: values.size].astype(np.int8), scales


def from_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 ``(n,)`` of codes ``(n,)`` and scales ``(blocks(n),)``."""
    return codes * np.repeat(scales.astype(np.float32), BLOCK)[: codes.size]
