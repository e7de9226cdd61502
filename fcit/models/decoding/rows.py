"""Tensors with a row for each question of a batch, which hooks on layers read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

#: By name; a hook looks its tensor up at every forward pass.
Rows = dict[str, torch.Tensor]


class RowBuffers:
    """The same tensors at fixed addresses while a batch is decoded, so that rows can leave it.

    Args:
        rows: what hooks read; within :meth:`lent` it holds the buffers.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._buffers: Rows = {}

    @property
    def addresses(self) -> Hashable:
        """Where the buffers lie, and their shapes."""
        return tuple((n, self._buffers[n].data_ptr(), self._buffers[n].shape) for n in sorted(self._rows))

    @contextmanager
    def lent(self, count: int, room: int) -> Iterator[None]:
        """Copies of the tensors' ``count`` rows, at the beginning of buffers of ``room``."""
        before = dict(self._rows)
        for name, tensor in before.items():
            kept, shape = self._buffers.get(name), (room, *tensor.shape[1:])
            if kept is None or kept.shape[1:] != shape[1:] or len(kept) < room or kept.dtype != tensor.dtype:
                kept = self._buffers[name] = tensor.new_zeros(shape)
            kept[:count] = tensor  # one row may stand for all
        try:
            yield
        finally:
            self._rows.clear()
            self._rows.update(before)

    def narrow(self, count: int) -> None:
        """Hooks see the first ``count`` rows."""
        self._rows.update({name: self._buffers[name][:count] for name in self._rows})

    def move(self, free: torch.Tensor, moved: torch.Tensor) -> None:
        """Copy rows ``moved`` into the places of rows ``free``."""
        for name in self._rows:
            self._buffers[name][free] = self._buffers[name][moved]
