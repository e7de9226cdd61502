"""Frozen image features, computed once: one row per image in a memory-mapped file.

Rows have the number format of the model that computes them, so a bfloat16 model takes half the disk of a
float32 one, and what is read is bit for bit what was computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from PIL import Image

from fcit.config.kinds import Way
from fcit.data.collate import parted
from fcit.data.images.opening import image_path, open_image
from fcit.data.images.verdicts import stamp_of
from fcit.io.cache import cache_folder
from fcit.models.feature_store import BATCH, FeatureStore, R

#: The numpy type that stores a number format; numpy has no bfloat16, whose bits are stored as integers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}


def square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image in the middle of a square of the colour ``int(mean * 255)``, as LLaVA-1.5 pads it.

    An odd pixel of padding goes to the right or the bottom.
    """
    side = max(image.size)
    if image.width == image.height:
        return image
    padded = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return padded


def pixels(processor: Any, root: Path, images: Sequence[str], way: Way = "official") -> torch.Tensor:
    """Pixels of at most :data:`BATCH` images, padded with zeros to that number.

    Raises:
        DataError: an image is missing, unreadable or outside ``root``.
    """
    return filled(processed(processor, (open_image(root, image, way) for image in images)))


def processed(processor: Any, images: Iterable[Image.Image]) -> torch.Tensor:
    """The processor's ``pixel_values`` of images, with one image at a time in memory."""
    return torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])


def filled(rows: torch.Tensor) -> torch.Tensor:
    """At most :data:`BATCH` rows, padded with zeros to that number."""
    padded = torch.zeros(BATCH, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def stored(rows: torch.Tensor) -> np.ndarray:
    """Rows in the format of the cache."""
    rows = rows.detach().cpu().contiguous()
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def restored(rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of :func:`stored`."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def features_folder() -> Path:
    """The folder with all cached features of this machine."""
    return cache_folder() / "features"


def features_size() -> tuple[Path, int]:
    """The folder with all cached features and its size in bytes, including other models and data."""
    folder = features_folder()
    return folder, sum(file.stat().st_size for file in folder.glob("*/features.bin"))


class ImageFeatures(Generic[R]):
    """Frozen features of images below any root, from the cache on disk.

    Args:
        mark: identifies everything the features depend on; empty: no cache.
        shape: shape of one image's features.
        compute: root and at most :data:`BATCH` images -> their features, as :func:`stored`.
        dtype: their number format.
        limit: bytes that all cached features of the machine may take; None: any number.
        ahead: is told root and images that ``compute`` will be asked for after those that it is asked for now.
    """

    def __init__(
        self,
        mark: str,
        shape: tuple[int, ...],
        compute: Callable[[Path, Sequence[str]], Any],
        dtype: torch.dtype = torch.float32,
        limit: int | None = None,
        ahead: Callable[[Path, Sequence[str]], None] = lambda root, images: None,
    ) -> None:
        self.mark, self.shape, self.compute, self.dtype, self.limit = mark, shape, compute, dtype, limit
        self.ahead = ahead
        self._stores: dict[Path, FeatureStore[R]] = {}

    def get(self, root: Path, images: Sequence[str]) -> R:
        """Features ``(N, *shape)`` of images in this order, as :func:`stored`.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if not self.mark:
            parts = [self.compute(root, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
            return self._joined(parts)
        return self._store(root.resolve()).get(self._keys(root, images))

    def kept(self, root: Path, images: Sequence[str]) -> R | None:
        """As :meth:`get` where all of them are in the cache, else None; nothing is computed."""
        return self._store(root.resolve()).kept(self._keys(root, images)) if self.mark else None

    def keep(self, root: Path, images: Sequence[str]) -> None:
        """Compute and cache missing features, as far as there is room."""
        if self.mark:
            self._store(root.resolve()).fill(self._keys(root, images))

    @staticmethod
    def _keys(root: Path, images: Sequence[str]) -> list[str]:
        """Cache keys with size and modification time: a changed file is another image."""
        paths = {image: image_path(root, parted(image)[0]) for image in dict.fromkeys(images)}
        keys = {image: f"{image}|{stamp_of(path.stat())}" for image, path in paths.items()}
        return [keys[image] for image in images]

    def _joined(self, parts: Sequence[Any]) -> R:
        """What ``compute`` returned for several batches, as one."""
        joined: Any = np.concatenate(parts)
        return joined

    @property
    def stored(self) -> Any:
        """The number format of files."""
        return _STORED[self.dtype]

    def _open(self, folder: Path, compute: Any, ahead: Any, root: Path) -> FeatureStore[R]:
        """The store of the images below ``root``."""
        return FeatureStore(folder, self.shape, compute, self.stored, self.limit, ahead)

    def _store(self, root: Path) -> FeatureStore[R]:
        if root not in self._stores:
            folder = f"{self.mark}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"

            def compute(keys: Sequence[str]) -> Any:
                return self.compute(root, [key.rpartition("|")[0] for key in keys])

            def ahead(keys: Sequence[str]) -> None:
                self.ahead(root, [key.rpartition("|")[0] for key in keys])

            self._stores[root] = self._open(features_folder() / folder, compute, ahead, root)
        return self._stores[root]


class Pictures(Generic[R]):
    """Frozen features of a list of images, read batch by batch and never held all at once.

    Args:
        read: positions in the list -> features on the model's device, as :meth:`fcit.models.vision.Vision.features`.
        count: length of the list.
        early: reads the same in a thread of its own, or returns None where that is not possible.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], R],
        count: int,
        early: Callable[[Sequence[int]], R | None] | None = None,
    ) -> None:
        self._read, self._count, self._early = read, count, early
        self._coming: tuple[list[int], Future[R | None]] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def reads_ahead(self) -> bool:
        """Whether :meth:`ahead` has an effect."""
        return self._early is not None

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to read what the next :meth:`batch` will be asked for, unless something is being read already."""
        if self._early is not None and self._coming is None and indices:
            thread = ThreadPoolExecutor(1, thread_name_prefix="features")
            self._coming = list(indices), thread.submit(self._early, indices)
            thread.shutdown(wait=False)  # it ends with what it reads

    def batch(self, indices: Sequence[int]) -> R:
        """Features of the images at these positions, in this order.

        Raises:
            DataError: an image is missing, unreadable or outside its root.
        """
        if self._coming is not None:
            (wanted, reading), self._coming = self._coming, None
            rows = reading.result()
            if rows is not None and wanted == list(indices):
                return rows
        return self._read(indices)
