"""Frozen image features, computed once: one row per image in a memory-mapped file.

Rows have the number format of the model that computes them, so a bfloat16 model takes half the disk of a
float32 one, and what is read is bit for bit what was computed.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from fcit.config.kinds import Way
from fcit.data.images.opening import image_path, open_image
from fcit.errors import DataError
from fcit.io.cache import cache_folder
from fcit.io.console import Ticker

#: The numpy type that stores a number format; numpy has no bfloat16, whose bits are stored as integers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}

# Features are always computed in zero-padded batches of this size, so that a row does not depend on
# which other images were missing from the cache.
BATCH = 32


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


class ImageFeatures:
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
        compute: Callable[[Path, Sequence[str]], np.ndarray],
        dtype: torch.dtype = torch.float32,
        limit: int | None = None,
        ahead: Callable[[Path, Sequence[str]], None] = lambda root, images: None,
    ) -> None:
        self.mark, self.shape, self.compute, self.dtype, self.limit = mark, shape, compute, dtype, limit
        self.ahead = ahead
        self._stores: dict[Path, FeatureStore] = {}

    def get(self, root: Path, images: Sequence[str]) -> np.ndarray:
        """Features ``(N, *shape)`` of images in this order, as :func:`stored`.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if not self.mark:
            parts = [self.compute(root, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
            return np.concatenate(parts)
        return self._store(root.resolve()).get(self._keys(root, images))

    def kept(self, root: Path, images: Sequence[str]) -> np.ndarray | None:
        """As :meth:`get` where all of them are in the cache, else None; nothing is computed."""
        return self._store(root.resolve()).kept(self._keys(root, images)) if self.mark else None

    def keep(self, root: Path, images: Sequence[str]) -> None:
        """Compute and cache missing features, as far as there is room."""
        if self.mark:
            self._store(root.resolve()).fill(self._keys(root, images))

    @staticmethod
    def _keys(root: Path, images: Sequence[str]) -> list[str]:
        """Cache keys with size and modification time: a changed file is another image."""
        keys = {}
        for image in dict.fromkeys(images):
            status = image_path(root, image).stat()
            keys[image] = f"{image}|{status.st_size}-{status.st_mtime_ns}"
        return [keys[image] for image in images]

    def _store(self, root: Path) -> FeatureStore:
        if root not in self._stores:
            folder = f"{self.mark}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"

            def compute(keys: Sequence[str]) -> np.ndarray:
                return self.compute(root, [key.rpartition("|")[0] for key in keys])

            def ahead(keys: Sequence[str]) -> None:
                self.ahead(root, [key.rpartition("|")[0] for key in keys])

            where = features_folder() / folder
            self._stores[root] = FeatureStore(where, self.shape, compute, _STORED[self.dtype], self.limit, ahead)
        return self._stores[root]


class Pictures:
    """Frozen features of a list of images, read batch by batch and never held all at once.

    Args:
        read: positions in the list -> features ``(N, tokens, width)`` on the model's device.
        count: length of the list.
        early: reads the same in a thread of its own, or returns None where that is not possible.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], torch.Tensor],
        count: int,
        early: Callable[[Sequence[int]], torch.Tensor | None] | None = None,
    ) -> None:
        self._read, self._count, self._early = read, count, early
        self._coming: tuple[list[int], Future[torch.Tensor | None]] | None = None

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

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
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


class FeatureStore:
    """Append-only store shared by processes: ``features.bin`` (rows) and ``index.jsonl`` (key, row).

    Args:
        folder: one folder per model and image root; made on first use.
        shape: shape of one row.
        compute: keys -> ``(len(keys), *shape)``, called for missing rows.
        dtype: number format of the rows.
        limit: bytes that ``features.bin`` of this and all neighbouring folders may take together; rows beyond are
            computed at every read.
        ahead: is told the keys that ``compute`` will be asked for next.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        compute: Callable[[Sequence[str]], np.ndarray],
        dtype: Any = np.float32,
        limit: int | None = None,
        ahead: Callable[[Sequence[str]], None] = lambda keys: None,
    ) -> None:
        self.folder, self.shape, self.compute, self.limit, self.ahead = folder, shape, compute, limit, ahead
        self._dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._data, self._index = folder / "features.bin", folder / "index.jsonl"
        self._lock = FileLock(str(folder / "lock"))
        self._width = int(np.prod(shape)) * self._dtype.itemsize
        self._rows: dict[str, int] = {}
        self._read = 0
        self._map: np.ndarray | None = None
        self._full = False
        self._turn = threading.RLock()  # rows are read ahead in a thread

    def get(self, keys: Sequence[str]) -> np.ndarray:
        """Rows of ``keys`` as ``(len(keys), *shape)``, computing what is missing.

        Raises:
            DataError: the files are damaged.
        """
        with self._turn:
            self.fill(keys)
            missing = self._missing(keys)
            if not missing:
                return self._kept([self._rows[key] for key in keys])
            parts = [self._computed(missing[i : i + BATCH]) for i in range(0, len(missing), BATCH)]
            fresh = {key: row for part in parts for key, row in part}
            kept = [key for key in dict.fromkeys(keys) if key not in fresh]
            if kept:
                fresh |= dict(zip(kept, self._kept([self._rows[key] for key in kept]), strict=True))
            return np.stack([fresh[key] for key in keys])

    def kept(self, keys: Sequence[str]) -> np.ndarray | None:
        """As :meth:`get` where every row is stored, else None.

        Raises:
            DataError: the files are damaged.
        """
        with self._turn:
            return None if self._missing(keys) else self._kept([self._rows[key] for key in keys])

    def fill(self, keys: Sequence[str]) -> None:
        """Compute and store missing rows, as long as there is room."""
        with self._turn:
            self._fill(keys)

    def _fill(self, keys: Sequence[str]) -> None:
        missing = self._missing(keys)
        if not missing or self._full:
            return
        with self._lock:
            missing = self._missing(keys)  # another process may have computed them meanwhile
            said = Ticker("images encoded", len(missing))
            for start in range(0, len(missing), BATCH):
                chunk = missing[start : start + BATCH]
                if not self._room(len(chunk)):
                    break
                self.ahead(chunk)
                self.ahead(missing[start + BATCH : start + 2 * BATCH])
                self._append(chunk)
                said.reached(start + len(chunk))
            self._refresh()

    def _room(self, rows: int) -> bool:
        """Whether this many more rows may be stored; warns once if not."""
        if self.limit is None:
            return True
        used = sum(file.stat().st_size for file in self.folder.parent.glob("*/features.bin"))
        self._full = used + rows * self._width > self.limit
        if self._full:
            warnings.warn(
                f"{self.folder.parent}: {used / 1e9:.2f} GB of frozen features leave no room for more "
                f"(backbone.feature_cache_gb: {self.limit / 1e9:g}); the others are computed each time they are "
                "needed. Remove folders of models or data you no longer use, or allow more",
                stacklevel=2,
            )
        return not self._full

    def _computed(self, keys: list[str]) -> list[tuple[str, np.ndarray]]:
        return list(zip(keys, self.compute(keys).astype(self._dtype).reshape(len(keys), *self.shape), strict=True))

    def _kept(self, rows: list[int]) -> np.ndarray:
        if self._map is None or self._map.shape[0] <= max(rows):
            count = self._data.stat().st_size // self._width if self._data.is_file() else 0
            if count <= max(rows):
                raise self._damaged(f"{count} rows, the index names row {max(rows)}")
            self._map = np.memmap(self._data, dtype=self._dtype, mode="r", shape=(count, *self.shape))
        return np.asarray(self._map[rows])

    def _missing(self, keys: Sequence[str]) -> list[str]:
        if any(key not in self._rows for key in keys):
            self._refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def _refresh(self) -> None:
        if not self._index.exists():
            return
        with self._index.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # an incomplete line: its writer was killed or is still writing
                self._read += len(line)
                try:
                    key, row = json.loads(line)
                    if not isinstance(key, str) or type(row) is not int or row < 0:
                        raise ValueError("not a key and the number of a row")
                except (ValueError, TypeError, RecursionError) as error:
                    raise self._damaged(f"the index holds {line[:80]!r}: {error}") from None
                self._rows[key] = row

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"{self.folder}: damaged feature cache ({problem}); remove this folder, it is made again")

    def _append(self, keys: list[str]) -> None:
        values = self.compute(keys).astype(self._dtype).reshape(len(keys), -1)
        size = self._data.stat().st_size if self._data.exists() else 0
        start = -(-size // self._width)  # a row left incomplete by a killed process is skipped
        with self._data.open("r+b" if size else "wb") as file:
            file.seek(start * self._width)
            file.write(values.tobytes())
        existing = self._index.read_bytes() if self._index.exists() else b""
        with self._index.open("ab") as file:
            if existing and not existing.endswith(b"\n"):
                file.truncate(existing.rfind(b"\n") + 1)
            for offset, key in enumerate(keys):
                file.write((json.dumps([key, start + offset]) + "\n").encode())
