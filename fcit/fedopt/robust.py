"""Robust aggregation rules (``robust:``).

A rule combines the updates of one home, a subspace or the shared tensors, into what the federated
optimiser takes as their mean. With fewer than three updates there is no majority: the
plain mean is taken and the home is named in the ``round`` event.

A rule needs all updates of a home at once, and memory must not grow with their number: they are stored in
scratch files, one per tensor with a row per client, and are read in blocks of columns.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from fcit.io.trees import Tensors

LEAST = 3  # minimum of updates for a rule
BLOCK = 1 << 20  # numbers read at a time
SHARE = 0.2  # share trimmed at each end


class UpdateBuffer:
    """The updates of one home on disk: a file of float32 rows per tensor.

    Args:
        folder: created empty; files of an interrupted round are removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.weights: list[int] = []

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def names(self) -> list[str]:
        """The tensors that updates hold."""
        return list(self._shapes)

    def _file(self, name: str) -> Path:
        return self._folder / f"{list(self._shapes).index(name)}.f32"  # a tensor's name may contain any character

    def add(self, tensors: Tensors, weight: int) -> None:
        """Store one update of ``weight`` records; every update has the same tensors."""
        for name, tensor in tensors.items():
            self._shapes.setdefault(name, tensor.shape)
            with self._file(name).open("ab") as file:
                file.write(np.ascontiguousarray(tensor, dtype=np.float32).tobytes())
        self.weights.append(weight)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def rows(self, name: str) -> np.ndarray:
        """All updates of a tensor, ``(clients, numbers)``, mapped from the file."""
        size = math.prod(self._shapes[name])
        if not size:  # an empty file cannot be mapped
            return np.empty((len(self), 0), np.float32)
        return np.memmap(self._file(name), dtype=np.float32, mode="r", shape=(len(self), size))

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of columns ``(clients, columns)`` of a tensor, float64, at most :data:`BLOCK` numbers each."""
        rows = self.rows(name)
        step = max(1, BLOCK // len(self))
        for start in range(0, rows.shape[1], step):
            part = slice(start, start + step)
            yield part, rows[:, part].astype(np.float64)

    def updates(self) -> Iterator[tuple[Tensors, int]]:
        """The updates in the order they were added."""
        for row, weight in enumerate(self.weights):
            yield {n: np.array(self.rows(n)[row]).reshape(shape) for n, shape in self._shapes.items()}, weight

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Off:
    """No rule: the sample-weighted mean of all updates. Base of the others."""

    summary: ClassVar[str] = "no rule: the sample-weighted mean of all accepted updates"
    #: Whether the rule needs all updates of a home at once.
    buffers: ClassVar[bool] = False
    #: Minimum of updates of one home for the rule to be meaningful.
    least: ClassVar[int] = LEAST

    def combine(self, buffer: UpdateBuffer, old: Tensors) -> Tensors:
        """The clients' mean, given the server's tensors; float32."""
        raise NotImplementedError


class _Columns(Off):
    """Coordinate-wise rules with equal weight for all clients, whatever number of records they report."""

    buffers = True

    def combine(self, buffer: UpdateBuffer, old: Tensors) -> Tensors:
        """Apply the rule to every coordinate."""
        combined = {}
        for name in buffer.names:
            flat = np.empty(int(np.prod(buffer.shape(name))), dtype=np.float32)
            for part, values in buffer.blocks(name):
                flat[part] = self.column(values)
            combined[name] = flat.reshape(buffer.shape(name))
        return combined

    def column(self, values: np.ndarray) -> np.ndarray:
        """One number for each column of ``values (clients, columns)``."""
        raise NotImplementedError


class Median(_Columns):
    """Coordinate-wise median (Yin et al., 2018, arXiv 1803.01498, definition 1).

    theta_j <- med { theta_kj : k }; for an even number the mean of the two middle values. Robust as long as
    fewer than half of the home's clients are hostile.
    """

    summary = "coordinate-wise median, equal weight for clients (Yin et al., 2018); needs 3 updates"

    def column(self, values: np.ndarray) -> np.ndarray:
        return np.median(values, axis=0)


class TrimmedMean(_Columns):
    """Coordinate-wise trimmed mean (Yin et al., 2018, arXiv 1803.01498, definition 2).

    theta_j <- mean of { theta_kj : k } without the b largest and the b smallest, b = max(1, floor(0.2 K)) of K
    clients. Robust against up to b hostile clients: one of up to nine, two of ten. (The paper trims a share beta
    of its choice; 0.2 and "at least one" are ours.)
    """

    summary = "coordinate-wise mean without the highest and lowest fifth, at least one each (Yin et al., 2018)"

    def column(self, values: np.ndarray) -> np.ndarray:
        cut = trimmed(len(values))
        return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


def trimmed(clients: int) -> int:
    """Number of values trimmed at each end."""
    return max(1, int(SHARE * clients))


class NormClip(Off):
    """Updates clipped to their median norm (norm clipping, Sun et al., 2019, arXiv 1911.07963, section 4).

        theta <- theta + sum_k n_k s_k (theta_k - theta) / sum_k n_k,   s_k = min(1, M / ||theta_k - theta||)

    with the norm over all tensors of the home. The threshold is ours: M is the median of the norms of
    the home's updates (the paper has a constant). A hostile client can still choose its direction, and
    its weight by the number of records it reports.
    """

    summary = "updates scaled down to the median norm of their group (after Sun et al., 2019; our threshold)"
    buffers = True

    def combine(self, buffer: UpdateBuffer, old: Tensors) -> Tensors:
        """The weighted mean of the clipped updates."""
        norms = self._norms(buffer, old)
        middle = float(np.median(norms))
        scales = np.minimum(1.0, middle / np.where(norms > 0, norms, 1.0))
        shares = np.array(buffer.weights, dtype=np.float64) / sum(buffer.weights)
        combined = {}
        for name in buffer.names:
            start = old[name].astype(np.float64).ravel()
            flat = np.empty(start.size, dtype=np.float32)
            for part, values in buffer.blocks(name):
                flat[part] = start[part] + (shares * scales) @ (values - start[part])
            combined[name] = flat.reshape(buffer.shape(name))
        return combined

    @staticmethod
    def _norms(buffer: UpdateBuffer, old: Tensors) -> np.ndarray:
        squares = np.zeros(len(buffer))
        for name in buffer.names:
            start = old[name].astype(np.float64).ravel()
            for part, values in buffer.blocks(name):
                squares += ((values - start[part]) ** 2).sum(axis=1)
        return np.sqrt(squares)
