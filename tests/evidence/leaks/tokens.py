"""Which questions a sum of identity features was made of."""

from __future__ import annotations

import numpy as np

#: Gradients and coefficients below this share of the largest count as zero in :func:`nonnegative`.
TOLERANCE = 1e-10


def nonnegative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that brings ``matrix @ x`` closest to the target (Lawson and Hanson, 1974, chapter 23).

    Args:
        matrix: ``(m, V)``.
        target: ``(m,)``.

    Returns:
        ``(V,)``.
    """
    if len(matrix) > matrix.shape[1]:  # the same distances but for a constant, in fewer numbers
        basis, matrix = np.linalg.qr(matrix)
        target = basis.T @ target
    x, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], dtype=bool)
    least = TOLERANCE * np.abs(matrix.T @ target).max()
    for _ in range(3 * len(x)):
        gradient = np.where(free, -np.inf, matrix.T @ (target - matrix @ x))
        if gradient.max() <= least:
            break
        free[int(gradient.argmax())] = True
        while True:
            wanted = np.zeros_like(x)
            wanted[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            negative = free & (wanted <= 0)
            if not negative.any():
                break
            x += np.min(x[negative] / (x[negative] - wanted[negative])) * (wanted - x)
            free &= x > TOLERANCE * max(x.max(), 1.0)
            x[~free] = 0.0
        x = wanted
    return x


def counted(total: np.ndarray, count: int, candidates: np.ndarray) -> np.ndarray:
    """How often each candidate occurs among ``count`` records with this feature sum, rounded to whole numbers.

    The nearest non-negative combination, in which all together count ``count``.

    Args:
        total: ``(d,)``.
        candidates: features ``(V, d)``.

    Returns:
        ``(V,)`` int.
    """
    scale = np.linalg.norm(candidates, axis=1).mean()
    matrix = np.concatenate([candidates.T.astype(np.float64), np.full((1, len(candidates)), scale)])
    return np.rint(nonnegative(matrix, np.append(total, count * scale))).astype(int)


def nearest(token: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Candidates by their cosine to a token, the most similar first ``(V,)``."""
    lengths = np.linalg.norm(candidates, axis=1) * np.linalg.norm(token)
    return np.argsort(-(candidates @ token) / lengths, kind="stable")
