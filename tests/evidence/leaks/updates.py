"""Which records an update was trained on, and which tokens it teaches."""

from __future__ import annotations

import numpy as np

from fcit.io.trees import Tensors
from fcit.models.layout import B
from tests.evidence.leaks.tokens import nonnegative

#: Added to the root of the second moment by torch's AdamW.
EPSILON = 1e-8


def flat(tensors: Tensors, start: Tensors) -> np.ndarray:
    """How far the factors B of an update have moved, in one row, float64.

    Factors A do not move while B is 0, and what the projector has learnt depends on the image most of all.
    """
    names = sorted(name for name in tensors if B in name)
    return np.concatenate([(tensors[n].astype(np.float64) - start[n]).ravel() for n in names])


def gradients(moved: np.ndarray, lr: float) -> np.ndarray:
    """The gradient of an update of one step of AdamW that began at 0.

    Such a step is -lr g / (|g| + epsilon): hardly more than a sign, but float32 numbers near lr tell how far they are
    from it, and that is epsilon / |g|.

    Args:
        moved: by how much, of tensors that were 0, so that it is exact in float32.
        lr: rate of the step.
    """
    share = np.minimum(np.abs(moved) / lr, 1 - 2.0**-24)
    return -np.sign(moved) * EPSILON * share / (1 - share)


class Replayed:
    """Every candidate's own update, to compare an update of several records with.

    The server knows the tensors that a client starts from, the configuration and the seed, so it can train on any
    record it suspects. The gradient of several records is the weighted mean of theirs, and an update of a few steps is
    roughly one; the weights of the candidates are those of the nearest non-negative combination.

    Args:
        updates: of each candidate alone ``(V, m)``, or their gradients; brought to one length.
    """

    def __init__(self, updates: np.ndarray) -> None:
        self._basis, self._factor = np.linalg.qr((updates / np.linalg.norm(updates, axis=1, keepdims=True)).T)

    def weights(self, update: np.ndarray) -> np.ndarray:
        """How much of each candidate is in an update ``(V,)``."""
        return nonnegative(self._factor, self._basis.T @ update)


def found(weights: np.ndarray, true: np.ndarray) -> float:
    """Share of the true ones ``(V,)`` bool that are among as many candidates of the largest weights."""
    best = np.argsort(-weights, kind="stable")[: int(true.sum())]
    return float(true[best].mean())


def taught(moved: np.ndarray, embeddings: np.ndarray, known: int) -> np.ndarray:
    """Tokens by how well they fit what moved in the last layer that writes to the output, the best first.

    The gradient of a factor B of that layer is a sum over answer positions of g_t (A x_t)^T with g_t = J (sum_v p_v
    e_v - e_y), which points away from the embedding e_y of the token to be learnt. What moved lies along few g_t, so a
    token is judged by the cosine of its embedding with the first two left singular vectors. (The same low rank lets
    Petrov et al., 2024, arXiv 2405.15586, recover whole texts from gradients of all weights. Of a factor of rank 8 the
    rows have full rank as soon as a text has eight tokens, which takes the questions out of reach of their test.)

    Args:
        moved: ``(d_out, rank)``.
        embeddings: of the output, with the scale of the last norm ``(V, d_out)``.
        known: a token that every answer has, its end; left out.

    Returns:
        ``(V - 1,)``.
    """
    directions = np.linalg.svd(moved, full_matrices=False)[0][:, :2]
    centred = embeddings - embeddings.mean(axis=0)
    end = centred[known] / np.linalg.norm(centred[known])
    centred = centred - np.outer(centred @ end, end)
    fit = np.linalg.norm(centred @ directions, axis=1) / np.maximum(np.linalg.norm(centred, axis=1), 1e-9)
    fit[known] = -1.0
    return np.argsort(-fit, kind="stable")[:-1]
