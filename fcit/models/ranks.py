"""LoRA factors of different ranks: the leading rows of A and columns of B, and zeros in the place of what is lacking.

With A ``(r, d_in)`` and B ``(d_out, r)`` the product is a sum over the rank, B A = sum_j b_j a_j. Cutting leaves terms
out, and zeros add none, so that the product of padded factors is that of the factors themselves.
"""

from __future__ import annotations

import numpy as np

from fcit.io.trees import Tensors
from fcit.models.layout import A, is_factor


def axis_of(name: str) -> int:
    """The axis of a factor that the rank counts along: rows of A, columns of B."""
    return 0 if A in name else 1


def rank_of(tensors: Tensors) -> int:
    """The largest rank among the factors of a subspace or an update; 0 without factors."""
    return max((t.shape[axis_of(n)] for n, t in tensors.items() if is_factor(n)), default=0)


def cut(name: str, tensor: np.ndarray, rank: int) -> np.ndarray:
    """A view of the leading ``rank`` rows of an A, or columns of a B; what is no larger, or no factor, as it is."""
    if not is_factor(name) or tensor.shape[axis_of(name)] <= rank:
        return tensor
    return tensor[:rank] if axis_of(name) == 0 else tensor[:, :rank]


def padded(name: str, tensor: np.ndarray, rank: int) -> np.ndarray:
    """A factor with zeros up to ``rank``; one that has this rank as it is."""
    lacking = rank - tensor.shape[axis_of(name)]
    if lacking == 0:
        return tensor
    rows, columns = (lacking, 0) if axis_of(name) == 0 else (0, lacking)
    return np.pad(tensor, ((0, rows), (0, columns)))


def problem(name: str, shape: tuple[int, ...], whole: tuple[int, ...]) -> str | None:
    """Why a tensor of this shape cannot stand in the place of one of the shape ``whole``, or None.

    Factors may have a smaller rank; everything else must be equal.
    """
    if shape == whole:
        return None
    if not is_factor(name) or len(shape) != 2:
        return f"{name} is {shape}, expected {whole}"
    axis = axis_of(name)
    if shape[1 - axis] != whole[1 - axis] or not 1 <= shape[axis] <= whole[axis]:
        return f"{name} is {shape}, expected {whole} or a smaller rank"
    return None
