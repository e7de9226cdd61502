"""Products B A of one layer as small matrices in common bases: what merges of low-rank updates compute with.

With the stacks of two or more updates, [B_1, B_2, ...] = Q_L R_L and [A_1^T, A_2^T, ...] = Q_R R_R (QR decompositions),
every B_i A_i equals Q_L C_i Q_R^T with C_i = R_L,i R_R,i^T of at most (k r) x (k r) numbers. Frobenius norms, inner
products and singular values of the products are those of the C_i, so nothing is lost, and the dense d_out x d_in matrix
is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fcit.fedopt.factors import factored
from fcit.fedopt.products import one_thread


class Cores:
    """The products of several pairs of factors of one layer.

    Attributes:
        products: the C_i ``(m, n)`` float64, in the order of the pairs; m and n are at most the sum of their ranks.
    """

    @one_thread()
    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take pairs B ``(d_out, r_i)`` and A ``(r_i, d_in)``."""
        ranks = [len(a) for _, a in pairs]
        left = torch.from_numpy(np.concatenate([b for b, _ in pairs], axis=1, dtype=np.float64))
        right = torch.from_numpy(np.concatenate([a for _, a in pairs], axis=0, dtype=np.float64))
        self._left, of_left = torch.linalg.qr(left)
        self._right, of_right = torch.linalg.qr(right.T)
        halves = zip(of_left.split(ranks, dim=1), of_right.split(ranks, dim=1), strict=True)
        self.products = [b @ a.T for b, a in halves]

    @one_thread()
    def factored(self, core: torch.Tensor, old: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The best approximation of a product ``(m, n)`` by factors of the rank of ``old``.

        Args:
            old: an A ``(r, d_in)``, whose scale and further directions the new one keeps.

        Returns:
            A, B and ||W - B A||_F^2.
        """
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        a, b = factored((self._left @ u).numpy(), s.numpy(), (vt @ self._right.T).numpy(), old)
        return a, b, float(s[len(old) :].square().sum())
