"""Main directions of frozen weights."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight


@torch.no_grad()
def principal(layer: Any, share: float) -> torch.Tensor:
    """The leading right singular vectors of a linear layer's weight that hold a share of its squares: ``(k, d_in)``.

    They come from an eigendecomposition of the smaller Gram matrix, in float32: of a 4096 x 4096 weight about a second
    on a GPU. k is the smallest number whose singular values hold at least ``share`` of the sum of squares; 0 for 0.
    """
    weight = dequantize_module_weight(layer).float()
    wide = weight.shape[1] > weight.shape[0]
    squares, vectors = torch.linalg.eigh(weight @ weight.T if wide else weight.T @ weight)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    reached = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    kept = int((reached < share).sum()) + 1 if share > 0 else 0
    chosen = vectors[:, :kept]
    if wide:  # left singular vectors: V = W^T U / S
        chosen = weight.T @ (chosen / squares[:kept].sqrt().clamp(min=1e-12))
    return chosen.T.contiguous()
