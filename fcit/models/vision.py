"""Images of one backbone as frozen features: opened, through the vision tower, from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from fcit import config as configuration
from fcit.config.kinds import Way
from fcit.data.collate import parted
from fcit.data.images.opening import open_image
from fcit.data.images.sizes import ImageSizes
from fcit.models import hashes
from fcit.models.families.base import AnySize, Family
from fcit.models.features import ImageFeatures, Pictures, filled, restored, stored
from fcit.models.loader import Loader
from fcit.models.patches import Features, Grid, Image, ImagePatches, Patches

#: Threads that prepare images for a GPU, unless ``backbone.loader_threads`` says another number.
_THREADS = 4


class Vision:
    """Frozen features of images that all become the same number of tokens: ``(N, tokens, width)``.

    Args:
        family: the loaded model.
        way: ``data.pictures``: how files become pixels.
        dtype: number format of what is kept.
        device: where features go.
    """

    def __init__(
        self, family: Family, settings: configuration.Backbone, way: Way, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.family, self.settings, self.way, self.dtype, self.device = family, settings, way, dtype, device

    @cached_property
    def mark(self) -> str:
        """Identifies the feature cache: vision weights, preparation of images, version of transformers."""
        parts = [hashes.of_module(self.family.tower), self.family.processor.to_json_string(), transformers.__version__]
        parts += [self.family.view] if self.family.view else []
        if self.way != "official":  # so that names of earlier versions stay valid
            parts.append(f"pictures: {self.way}")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def features(self, root: Path, images: Sequence[str]) -> Features:
        """Features of images, from the cache if it is enabled; there may be none.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        return self._placed(self._images.get(root, self._named(images))) if images else self.blank()

    def pictures(self, root: Path, names: Sequence[str]) -> Pictures[Any]:
        """The same features for training, read batch by batch.

        Features that are not cached are computed first, as far as the cache has room; without a cache every batch
        is computed when it is read. For a GPU, those of the next batch are read into pinned memory meanwhile.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        names = self._named(names)
        if names:
            with self._loader.working():
                self._images.keep(root, names)

        def early(indices: Sequence[int]) -> Features | None:
            kept = self._images.kept(root, [names[i] for i in indices])
            return None if kept is None else self._placed(kept, pinned=True)

        ahead = self.device.type == "cuda" and self.settings.loader_threads != 0
        return Pictures(lambda i: self.features(root, [names[j] for j in i]), len(names), early if ahead else None)

    def blank(self, images: Sequence[str] = (), root: Path | None = None) -> Features:
        """Zeros in the place of the features of images; without ``root`` of typical ones."""
        return torch.zeros(len(images), *self.family.shape, dtype=self.dtype, device=self.device)

    def computed(self, root: Path, images: Sequence[str]) -> Any:
        """Features by the tower, in the format of the cache."""
        rows = self._loader.rows(root, images)
        return stored(self.family.features(filled(rows))[: len(rows)].to(self.dtype))

    @cached_property
    def _loader(self) -> Loader:
        threads = self.settings.loader_threads
        if threads is None:
            threads = 0 if self.device.type == "cpu" else _THREADS

        return Loader(self.pixels, threads)

    def pixels(self, root: Path, image: str) -> torch.Tensor:
        """One image as the tower sees it.

        Raises:
            DataError: it is missing, unreadable or outside ``root``.
        """
        return self.family.pixels(open_image(root, image, self.way))

    def _named(self, images: Sequence[str]) -> list[str]:
        """Names under which features of images are kept: here it is all the same whether one is alone."""
        return [parted(image)[0] for image in images]

    @cached_property
    def _images(self) -> ImageFeatures[Any]:
        return self._kept(*self._where, self.computed, self.dtype, self._limit, self._loader.ahead)

    @property
    def _kept(self) -> Callable[..., ImageFeatures[Any]]:
        return ImageFeatures

    @property
    def _where(self) -> tuple[str, tuple[int, ...]]:
        return self.mark if self.settings.feature_cache == "disk" else "", self.family.shape

    @property
    def _limit(self) -> int:
        return int(self.settings.feature_cache_gb * 1e9)

    def _placed(self, kept: Any, pinned: bool = False) -> Features:
        """What the cache holds, on the device."""
        return self._moved(restored(kept, self.dtype), pinned)

    def _moved(self, rows: torch.Tensor, pinned: bool) -> torch.Tensor:
        return rows.pin_memory().to(self.device, non_blocking=True) if pinned else rows.to(self.device)


class NativeVision(Vision):
    """Frozen features of images that keep their own size; each passes through the tower by itself."""

    family: AnySize

    def grids(self, root: Path | None, images: Sequence[str]) -> list[Grid]:
        """The grids of images, by their headers; without ``root`` of typical ones."""
        sizes = None if root is None else self._sizes.setdefault(root, ImageSizes(root, self.way))
        return [self.family.grid_of(image, sizes) for image in images]

    @cached_property
    def _sizes(self) -> dict[Path, ImageSizes]:
        return {}

    def blank(self, images: Sequence[str] = (), root: Path | None = None) -> Features:
        grids = self.grids(root, images)
        counts = tuple(self.family.kept(grid) for grid in grids)
        zeros = torch.zeros(sum(counts), *self.family.shape, dtype=self.dtype, device=self.device)
        return Patches(zeros, counts, tuple(grids))

    def _named(self, images: Sequence[str]) -> list[str]:
        return super()._named(images) if self.family.among is self.family else list(images)

    def pixels(self, root: Path, image: str) -> torch.Tensor:
        path, several = parted(image)
        return (self.family.among if several else self.family).pixels(open_image(root, path, self.way))

    def computed(self, root: Path, images: Sequence[str]) -> list[Image]:
        grids = self.grids(root, images)
        pixels = self._loader.each(root, images)
        return [
            Image(stored(self.family.rows(one, grid).to(self.dtype)), grid)
            for one, grid in zip(pixels, grids, strict=True)
        ]

    @property
    def _kept(self) -> Callable[..., ImageFeatures[Any]]:
        def count(root: Path, images: Sequence[str]) -> list[int]:
            return [self.family.kept(grid) for grid in self.grids(root, images)]

        return lambda *arguments: ImagePatches(*arguments, count=count)

    def _placed(self, kept: Patches[np.ndarray], pinned: bool = False) -> Features:
        return kept.with_rows(self._moved(restored(kept.rows, self.dtype), pinned))


def vision_of(
    family: Family, settings: configuration.Backbone, way: Way, dtype: torch.dtype, device: torch.device
) -> Vision:
    """The vision of a backbone, by whether its images keep their size."""
    kind = NativeVision if isinstance(family, AnySize) and family.native else Vision
    return kind(family, settings, way, dtype, device)
