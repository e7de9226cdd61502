"""Updates of clients with smaller ranks as the server's tensors are shaped."""

from __future__ import annotations

import numpy as np

from fcit.io.trees import Tensors
from fcit.models.layout import is_factor
from fcit.models.ranks import axis_of, padded


class Padding:
    """Fills factors of a smaller rank with zeros, and keeps what no client of a round has trained.

    Columns beyond the largest rank of a round are the server's old ones in the mean: their mean would be zero, and
    where A's row and B's column are both zero, no gradient ever moves them again.

    Args:
        old: the server's tensors.
    """

    def __init__(self, old: Tensors) -> None:
        self._old = old
        self._trained: dict[str, int] = {}  # largest rank seen, of factors that somebody sent at a smaller one

    def __call__(self, tensors: Tensors) -> Tensors:
        """An update in the server's shapes; tensors that have them are the same objects."""
        return {name: self._padded(name, tensor) if is_factor(name) else tensor for name, tensor in tensors.items()}

    def _padded(self, name: str, tensor: np.ndarray) -> np.ndarray:
        axis = axis_of(name)
        rank = self._old[name].shape[axis]
        self._trained[name] = max(self._trained.get(name, 0), tensor.shape[axis])
        return padded(name, tensor, rank)

    def completed(self, mean: Tensors) -> Tensors:
        """The mean of such updates with the server's own columns where no client had any."""
        return {name: self._completed(name, tensor) if is_factor(name) else tensor for name, tensor in mean.items()}

    def _completed(self, name: str, mean: np.ndarray) -> np.ndarray:
        axis, trained = axis_of(name), self._trained[name]
        if trained == mean.shape[axis]:
            return mean
        rest = np.take(self._old[name], range(trained, mean.shape[axis]), axis=axis)
        return np.concatenate([np.take(mean, range(trained), axis=axis), rest], axis=axis)
