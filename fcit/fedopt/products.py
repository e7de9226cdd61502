"""Weighted sums of products B A, kept as factors: the dense d_out x d_in matrix is never formed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from fcit import seeding

BUCKETS = 256  # of a sketch


@contextmanager
def one_thread() -> Iterator[None]:
    """Decompositions on one thread: the same bits on every machine, and no contention for cores.

    With two threads on two busy cores, 36 QR decompositions of 320 x 48 took 4 s (numpy: 17 s) instead of 0.02 s.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def squared(b: np.ndarray, a: np.ndarray) -> float:
    """||B A||_F^2 = tr(B^T B A A^T), without the product."""
    left, right = torch.from_numpy(np.ascontiguousarray(b)).double(), torch.from_numpy(np.ascontiguousarray(a)).double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


@one_thread()
def squares(tensor: np.ndarray) -> float:
    """The sum of squares, in float64."""
    return float(torch.from_numpy(np.ascontiguousarray(tensor)).double().square().sum())


class Products:
    """W = sum_k n_k B_k A_k / N of one layer, as W = L R with L = [sqrt(w_1) B_1, ...], R = [sqrt(w_1) A_1; ...].

    ``rank``, the number of columns of L, grows with every update up to min(d_out, d_in); then a QR
    decomposition of the narrower factor reduces it without loss: R = Q T gives W = (L Q) T.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._parts: list[tuple[float, np.ndarray, np.ndarray]] = []

    def add(self, b: np.ndarray, a: np.ndarray, weight: int) -> None:
        """Add one client's factors, ``(d_out, r)`` and ``(r, d_in)``, of ``weight`` records."""
        self.weight += weight
        self._parts.append((float(weight), b, a))
        if self.rank > min(b.shape[0], a.shape[1]):
            self._compress()

    @classmethod
    def of(cls, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Products:
        """The sum of products, of pairs B ``(d_out, r_i)`` and A ``(r_i, d_in)``, whatever their ranks."""
        total = cls()
        for b, a in pairs:
            total.add(b, a, 1)
        total.weight = 1
        return total

    @property
    def rank(self) -> int:
        """Rank of the stacked factors."""
        return sum(len(a) for _, _, a in self._parts)

    def _stacks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """L sqrt N and R sqrt N, float64."""
        left = np.concatenate([np.sqrt(w) * b.astype(np.float64) for w, b, _ in self._parts], axis=1)
        right = np.concatenate([np.sqrt(w) * a.astype(np.float64) for w, _, a in self._parts], axis=0)
        return torch.from_numpy(left), torch.from_numpy(right)

    def stack(self) -> tuple[np.ndarray, np.ndarray]:
        """[B_1, ..., B_K] and [w_1 A_1; ...; w_K A_K], float32, whose product is W."""
        left = np.concatenate([b for _, b, _ in self._parts], axis=1)
        right = np.concatenate([w / self.weight * a.astype(np.float64) for w, _, a in self._parts], axis=0)
        return left.astype(np.float32), right.astype(np.float32)

    def residual(self, b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors ``(d_out, m)`` and ``(m, d_in)``, float32, of W - B A, without what float32 cannot tell from W."""
        rest = Products()
        rest._parts = [(w / self.weight, left, right) for w, left, right in self._parts]
        rest._parts.append((1.0, -b, a))
        rest.weight = 1
        if rest.rank > min(b.shape[0], a.shape[1]):
            rest._compress()
        u, s, vt = rest.svd()
        kept = int((s > np.finfo(np.float32).eps * self.norm()).sum())
        return (u[:, :kept] * s[:kept]).astype(np.float32), vt[:kept].astype(np.float32)

    @one_thread()
    def _compress(self) -> None:
        left, right = self._stacks()
        if right.shape[1] <= left.shape[0]:
            q, t = torch.linalg.qr(right)
            left, right = left @ q, t
        else:
            q, t = torch.linalg.qr(left.T)
            left, right = t.T, q.T @ right
        self._parts = [(1.0, left.numpy(), right.numpy())]

    @one_thread()
    def norm(self) -> float:
        """||W||_F."""
        return _norm(*self._stacks()) / self.weight

    @one_thread()
    def distance(self, b: np.ndarray, a: np.ndarray) -> float:
        """||W - B A||_F, the norm of the stacks [L, -B] and [R; A]."""
        left, right = self._stacks()
        b_, a_ = torch.from_numpy(b).double(), torch.from_numpy(a).double()
        return _norm(torch.cat([left / self.weight, -b_], dim=1), torch.cat([right, a_]))

    @one_thread()
    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W = U diag(s) V^T through L = Q_L R_L, R^T = Q_R R_R and the SVD of the small R_L R_R^T."""
        left, right = self._stacks()
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        u, s, vt = torch.linalg.svd(r_left @ r_right.T / self.weight, full_matrices=False)
        return (q_left @ u).numpy(), s.numpy(), (vt @ q_right.T).numpy()


class Sketch:
    """||W||_F of one layer and ||W - B A||_F from Psi W Omega, with one small sum whatever the number of clients.

    Psi ``(BUCKETS, d_out)`` throws rows into random buckets and adds them up there with random signs, Omega ``(d_in,
    BUCKETS)`` columns (count sketch; Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", 2002),
    so E ||Psi M Omega||_F^2 = ||M||_F^2; a norm is off by some 6 %. They are the same in every round. A side of at most
    BUCKETS is kept as it is: narrow layers are measured exactly.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._sum: torch.Tensor | None = None

    @one_thread()
    def add(self, b: np.ndarray, a: np.ndarray, weight: int) -> None:
        """Add one client's factors, ``(d_out, r)`` and ``(r, d_in)``, of ``weight`` records."""
        left, right = _gathered("rows", b), _gathered("columns", a.T)
        if self._sum is None:
            self._sum = torch.zeros(len(left), len(right), dtype=torch.float64)
        self.weight += weight
        self._sum.addmm_(left, right.T, alpha=weight)

    @one_thread()
    def norm(self) -> float:
        """||W||_F, estimated."""
        return 0.0 if self._sum is None else float(torch.linalg.matrix_norm(self._sum / self.weight))

    @one_thread()
    def distance(self, b: np.ndarray, a: np.ndarray) -> float:
        """||W - B A||_F, estimated."""
        seen = _gathered("rows", b) @ _gathered("columns", a.T).T
        return float(torch.linalg.matrix_norm(seen if self._sum is None else self._sum / self.weight - seen))


def _gathered(side: str, factor: np.ndarray) -> torch.Tensor:
    """The rows of a factor ``(width, r)`` in their buckets, float64."""
    rows = torch.from_numpy(factor).double()
    if len(rows) <= BUCKETS:
        return rows
    buckets, signs = _buckets(side, len(rows))
    return rows.new_zeros(BUCKETS, rows.shape[1]).index_add_(0, buckets, rows * signs)


@lru_cache(maxsize=8)
def _buckets(side: str, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bucket of each row ``(width,)`` and its sign ``(width, 1)``; of rows and columns not the same."""
    rng = seeding.generator(0, "sketch", side, width)
    buckets = torch.from_numpy(rng.integers(0, BUCKETS, width))
    return buckets, torch.from_numpy(rng.choice([-1.0, 1.0], (width, 1)))


def _norm(left: torch.Tensor, right: torch.Tensor) -> float:
    """||L R||_F = ||R_L R_R^T||_F with the triangles of two QR decompositions."""
    triangles = [torch.linalg.qr(stack, mode="r").R for stack in (left, right.T)]
    return float(torch.linalg.matrix_norm(triangles[0] @ triangles[1].T))
