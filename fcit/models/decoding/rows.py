"""Tensors with a row for each question of a batch, which hooks on layers read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

#: By name; a hook looks its tensor up at every forward pass.
Rows = dict[str, torch.Tensor]


class RowBuffers:
    """The same tensors at fixed addresses while a batch is decoded, so that rows can leave it.

    A tensor that comes in several widths in turn has a buffer for each.

    Args:
        rows: what hooks read; within :meth:`lent` it holds the buffers.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._made: dict[tuple[Hashable, ...], torch.Tensor] = {}
        self._buffers: Rows = {}  # those of the batch

    @property
    def addresses(self) -> Hashable:
        """Where the buffers lie, and their shapes."""
        return tuple((n, self._buffers[n].data_ptr(), self._buffers[n].shape) for n in sorted(self._rows))

    @contextmanager
    def lent(self, count: int, room: int) -> Iterator[None]:
        """Copies of the tensors' ``count`` rows, at the beginning of buffers of ``room``."""
        before = dict(self._rows)
        for name, tensor in before.items():
            key = name, *tensor.shape[1:], tensor.dtype
            if key not in self._made or len(self._made[key]) < room:
                self._made[key] = tensor.new_zeros(room, *tensor.shape[1:])
            kept = self._buffers[name] = self._made[key]
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
