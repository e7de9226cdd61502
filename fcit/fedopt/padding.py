"""Updates of clients with smaller ranks as the server's tensors are shaped."""

from __future__ import annotations

import numpy as np

from fcit.io.trees import Tensors
from fcit.models.layout import is_factor
from fcit.models.ranks import axis_of, padded


class Padding:
    """Fills factors of a smaller rank with zeros, and keeps what no client of a round has trained.

    Columns beyond the largest rank of a round's updates that have a weight are the server's old ones in the mean: their
    mean would be zero, and where A's row and B's column are both zero, no gradient ever moves them again.

    Args:
        old: the server's tensors.
    """

    def __init__(self, old: Tensors) -> None:
        self._old = old
        self._trained: dict[str, int] = {}  # largest rank seen of every factor

    def __call__(self, tensors: Tensors, counts: bool = True) -> Tensors:
        """An update in the server's shapes; tensors that have them are the same objects.

        Args:
            counts: whether its factors have a weight in their mean.
        """
        factors = [name for name in tensors if is_factor(name)]
        for name in factors if counts else ():
            self._trained[name] = max(self._trained.get(name, 0), tensors[name].shape[axis_of(name)])
        return tensors | {n: padded(n, tensors[n], self._old[n].shape[axis_of(n)]) for n in factors}

    def completed(self, mean: Tensors) -> Tensors:
        """The mean of such updates with the server's own columns where no client had any."""
        return {name: self._completed(name, tensor) if is_factor(name) else tensor for name, tensor in mean.items()}

    def _completed(self, name: str, mean: np.ndarray) -> np.ndarray:
        axis, trained = axis_of(name), self._trained.get(name)
        if trained is None or trained == mean.shape[axis]:  # without any weight the mean is the old one
            return mean
        rest = np.take(self._old[name], range(trained, mean.shape[axis]), axis=axis)
        return np.concatenate([np.take(mean, range(trained), axis=axis), rest], axis=axis)
