"""Frozen features of images that keep their own size: so many rows for each image, one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from fcit.models.feature_store import BATCH, FeatureStore
from fcit.models.features import ImageFeatures

#: What a family makes of an image's size, e.g. rows and columns of patches, or of tiles.
Grid = tuple[int, ...]
Rows = TypeVar("Rows", np.ndarray, torch.Tensor)


class Image(NamedTuple):
    """The features of one image: ``(n, *shape)`` in the format of the cache, and its grid."""

    rows: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Patches(Generic[Rows]):
    """Features of several images.

    Attributes:
        rows: ``(R, *shape)``, image after image.
        counts: rows of each image.
        grids: of each image.
    """

    rows: Rows
    counts: tuple[int, ...]
    grids: tuple[Grid, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.grids)

    def __getitem__(self, places: Sequence[int] | slice) -> Patches[Rows]:
        chosen = range(len(self))[places] if isinstance(places, slice) else places
        ends = np.cumsum((0, *self.counts))
        rows: Any = [np.arange(ends[place], ends[place + 1]) for place in chosen]
        index = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        kept = self.rows[torch.from_numpy(index)] if isinstance(self.rows, torch.Tensor) else self.rows[index]
        return Patches(kept, tuple(self.counts[p] for p in chosen), tuple(self.grids[p] for p in chosen))

    @property
    def device(self) -> Any:
        """Where the rows are."""
        return self.rows.device

    @property
    def dtype(self) -> Any:
        """Number format of the rows."""
        return self.rows.dtype

    def with_rows(self, rows: Any) -> Patches[Any]:
        """The same images with other rows."""
        return Patches(rows, self.counts, self.grids)


#: Features of a batch of images: ``(N, tokens, width)`` where all have one size, else of unlike size.
Features = torch.Tensor | Patches[torch.Tensor]


def of_images(images: Sequence[Image]) -> Patches[np.ndarray]:
    """Images one after the other; at least one."""
    rows = np.concatenate([image.rows for image in images])
    return Patches(rows, tuple(len(image.rows) for image in images), tuple(image.grid for image in images))


def together(parts: Sequence[Features]) -> Features:
    """The images of all parts, in this order."""
    equal = [part for part in parts if isinstance(part, torch.Tensor)]
    ragged = [part for part in parts if not isinstance(part, torch.Tensor)]
    if equal and ragged:
        raise TypeError("features of one size and of unlike sizes cannot be put together")
    if equal:
        return torch.cat(equal)
    counts, grids = (tuple(x for part in ragged for x in getattr(part, name)) for name in ("counts", "grids"))
    return Patches(torch.cat([part.rows for part in ragged]), counts, grids)


class ImagePatches(ImageFeatures[Patches[np.ndarray]]):
    """As :class:`fcit.models.features.ImageFeatures`, for images that keep their own size.

    Args:
        count: root and images -> how many rows each will have.
    """

    def __init__(
        self,
        mark: str,
        shape: tuple[int, ...],
        compute: Callable[[Path, Sequence[str]], list[Image]],
        dtype: torch.dtype = torch.float32,
        limit: int | None = None,
        ahead: Callable[[Path, Sequence[str]], None] = lambda root, images: None,
        *,
        count: Callable[[Path, Sequence[str]], list[int]],
    ) -> None:
        super().__init__(mark, shape, compute, dtype, limit, ahead)
        self.count = count

    def _joined(self, parts: Sequence[list[Image]]) -> Patches[np.ndarray]:
        return of_images([image for part in parts for image in part])

    def _open(self, folder: Path, compute: Any, ahead: Any, root: Path) -> PatchStore:
        def count(keys: Sequence[str]) -> list[int]:
            return self.count(root, [key.rpartition("|")[0] for key in keys])

        return PatchStore(folder, self.shape, compute, self.stored, self.limit, ahead, count=count)


class PatchStore(FeatureStore[Patches[np.ndarray]]):
    """As :class:`fcit.models.features.FeatureStore`; ``index.jsonl`` holds key, first row, number of rows and grid.

    Args:
        compute: keys -> their features, called for missing ones.
        count: keys -> how many rows each will have, so that there is room.
    """

    def __init__(self, *args: Any, count: Callable[[Sequence[str]], list[int]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._count = count
        self._shapes: dict[str, tuple[int, Grid]] = {}

    def _enter(self, key: Any, row: Any, count: Any = None, grid: Any = None) -> None:
        super()._enter(key, row)
        if type(count) is not int or count < 1 or not isinstance(grid, list) or any(type(n) is not int for n in grid):
            raise ValueError("not a key, a row, their number and a grid")
        self._shapes[key] = count, tuple(grid)

    def _needed(self, keys: Sequence[str]) -> int:
        return sum(self._count(keys))

    def _computed(self, keys: Sequence[str]) -> dict[str, Image]:
        images: Iterable[Image] = self.compute(keys)
        return {
            key: Image(image.rows.astype(self._dtype).reshape(-1, *self.shape), image.grid)
            for key, image in zip(keys, images, strict=True)
        }

    def _append(self, keys: Sequence[str]) -> None:
        images = self._computed(keys)
        row = self._write(np.concatenate([image.rows for image in images.values()]))
        entries = []
        for key, image in images.items():
            entries.append([key, row, len(image.rows), list(image.grid)])
            row += len(image.rows)
        self._list(entries)

    def _kept(self, keys: Sequence[str]) -> Patches[np.ndarray]:
        counts, grids = zip(*(self._shapes[key] for key in keys), strict=True)
        rows = [np.arange(self._rows[key], self._rows[key] + self._shapes[key][0]) for key in keys]
        return Patches(self._stored(np.concatenate(rows)), counts, grids)

    def _mixed(self, keys: Sequence[str], missing: Sequence[str]) -> Patches[np.ndarray]:
        fresh: dict[str, Image] = {}
        for start in range(0, len(missing), BATCH):
            fresh |= self._computed(missing[start : start + BATCH])
        for key in keys:
            if key not in fresh:
                one = self._kept([key])
                fresh[key] = Image(one.rows, one.grids[0])
        return of_images([fresh[key] for key in keys])
