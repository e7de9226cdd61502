"""Covariances as few rows, and steps that are made smaller in their main directions: common to SAME and PRISM.

A sum of outer products C = sum_i x_i x_i^T ``(d, d)`` is held as rows F ``(q, d)`` with F^T F = C, or the nearest to it
of so many rows; the matrix is never formed. Covariances of several clients or stages are united by stacking rows, each
times the square root of its weight:

    sum_k w_k C_k = F^T F,   F = [sqrt(w_1) F_1; sqrt(w_2) F_2; ...]

All functions take rows with any dimensions before the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from fcit.fedopt.products import one_thread
from fcit.methods.base import Session

#: A linear map of a tensor's step or gradient, by the tensor's name.
Steer = Callable[[str, torch.Tensor], torch.Tensor]
#: Eigenvalues below this share of the largest are rounding of float32.
_ROUNDING = torch.finfo(torch.float32).eps
_BEFORE = "before-step"


def eigenvalues(rows: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalues ``(..., min(q, d))`` of F^T F in float64, largest first; rounding is 0."""
    return _decomposed(rows)[0]


def leading(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` rows sqrt(lambda_i) v_i of F^T F's main eigenvectors, orthogonal, float64, largest first.

    Their covariance is the best approximation of F^T F of that rank (Eckart and Young). If there are fewer directions,
    rows of zeros follow.
    """
    values, vectors, rows = _decomposed(rows)
    main = (vectors.mT @ rows) * (values > 0)[..., None]
    missing = max(0, count - main.shape[-2])
    return torch.nn.functional.pad(main[..., :count, :], (0, 0, 0, missing))


@one_thread()
def _decomposed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors of F F^T, and F ``(..., min(q, d), d)``: as it is, or a triangle with F^T F."""
    rows = rows.double()
    if rows.shape[-2] > rows.shape[-1]:
        rows = torch.linalg.qr(rows, mode="r").R
    values, vectors = torch.linalg.eigh(rows @ rows.mT)
    values, vectors = values.flip(-1), vectors.flip(-1)
    return torch.where(values > _ROUNDING * values[..., :1], values, 0.0), vectors, rows


class Covariance:
    """A covariance that rows are added to, in bounded memory.

    Args:
        room: rows that it may hold, and is exact with; when there are more, the leading half of ``room`` stays.

    Attributes:
        rows: F ``(..., q, d)``; no number as long as nothing was added.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.rows = torch.empty(0)

    def add(self, rows: torch.Tensor) -> None:
        """C <- C + rows^T rows."""
        stacked = torch.cat([self.rows, rows], dim=-2) if self.rows.numel() else rows
        full = stacked.shape[-2] > self.room
        self.rows = leading(stacked, self.room // 2).to(rows) if full else stacked


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one; those of zeros stay."""
    return torch.nn.functional.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)


def rescaled(x: torch.Tensor, directions: torch.Tensor, scales: torch.Tensor | float) -> torch.Tensor:
    """x V^T diag(s) V + x (I - V^T V) for rows ``x (..., n, d)``.

    Args:
        directions: V ``(..., k, d)``, orthonormal rows or zeros.
        scales: s ``(..., k)``, or one number for all: 0 projects out of the directions.
    """
    inside = x @ directions.mT
    return x + (inside * (torch.as_tensor(scales, dtype=x.dtype, device=x.device) - 1)) @ directions


@torch.no_grad()
def before_step(session: Session, names: Iterable[str], steer: Steer, what: Literal["update", "gradient"]) -> None:
    """Steer the gradients of tensors, or note where they are, for :func:`after_step`; to be called after backward."""
    parameters = {name: p for name in names if (p := session.adapters.trainable[name]).grad is not None}
    if what == "update":
        session.notes[_BEFORE] = {name: p.detach().clone() for name, p in parameters.items()}
        return
    for name, p in parameters.items():
        p.grad.copy_(steer(name, p.grad))


@torch.no_grad()
def after_step(session: Session, steer: Steer) -> None:
    """theta <- theta_before + steer(theta - theta_before) for the tensors that :func:`before_step` has noted."""
    for name, before in session.notes.pop(_BEFORE, {}).items():
        parameter = session.adapters.trainable[name]
        parameter.copy_(before + steer(name, parameter - before))
