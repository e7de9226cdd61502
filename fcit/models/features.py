"""Frozen image features, computed once: one row per image in a memory-mapped file."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from fcit.data.benchmark import cache_folder
from fcit.data.records import image_path, open_image
from fcit.data.usable import stamp
from fcit.errors import DataError

# Features are always computed in zero-padded batches of this size, so that a row does not depend on
# which other images happened to be missing at the time.
BATCH = 32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports and bars; errors still raise."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def hash_weights(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pixels(processor: Any, root: Path, images: Sequence[str]) -> torch.Tensor:
    """Pixels of at most :data:`BATCH` images, filled up with zeros to that many.

    Raises:
        DataError: an image is missing, unreadable or outside ``root``.
    """
    found = processor([open_image(root, image) for image in images], return_tensors="pt")["pixel_values"]
    padded = torch.zeros(BATCH, *found.shape[1:])
    padded[: len(images)] = found
    return padded


class ImageFeatures:
    """Frozen features of images below any root, from the disk where they are kept.

    Args:
        mark: names the cache after everything the features depend on; empty: nothing is kept.
        shape: shape of one image's features, float32.
        compute: root and at most :data:`BATCH` images -> their features.
    """

    def __init__(self, mark: str, shape: tuple[int, ...], compute: Callable[[Path, Sequence[str]], np.ndarray]) -> None:
        self.mark, self.shape, self.compute = mark, shape, compute
        self._stores: dict[Path, FeatureStore] = {}

    def get(self, root: Path, images: Sequence[str]) -> np.ndarray:
        """Features ``(N, *shape)`` of images in this order.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if not self.mark:
            parts = [self.compute(root, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
            return np.concatenate(parts)
        # An image that was changed in place is another image.
        keys = {image: f"{image}|{stamp(image_path(root, image))}" for image in dict.fromkeys(images)}
        return self._store(root.resolve()).get([keys[image] for image in images])

    def _store(self, root: Path) -> FeatureStore:
        if root not in self._stores:
            folder = f"{self.mark}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"

            def compute(keys: Sequence[str]) -> np.ndarray:
                return self.compute(root, [key.rpartition("|")[0] for key in keys])

            self._stores[root] = FeatureStore(cache_folder() / "features" / folder, self.shape, compute)
        return self._stores[root]


class FeatureStore:
    """Append-only store shared by processes: ``features.bin`` (rows) and ``index.jsonl`` (key, row).

    Args:
        folder: one folder per model and image root; made on first use.
        shape: shape of one row, float32.
        compute: keys -> ``(len(keys), *shape)`` float32, called for rows that are not there.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], compute: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.folder, self.shape, self.compute = folder, shape, compute
        folder.mkdir(parents=True, exist_ok=True)
        self._data, self._index = folder / "features.bin", folder / "index.jsonl"
        self._lock = FileLock(str(folder / "lock"))
        self._width = int(np.prod(shape)) * 4
        self._rows: dict[str, int] = {}
        self._read = 0
        self._map: np.ndarray | None = None

    def get(self, keys: Sequence[str]) -> np.ndarray:
        """Rows of ``keys`` as ``(len(keys), *shape)`` float32, computing what is missing.

        Raises:
            DataError: the files are damaged.
        """
        missing = self._missing(keys)
        if missing:
            with self._lock:
                missing = self._missing(keys)  # another process may have been quicker
                for start in range(0, len(missing), BATCH):
                    self._append(missing[start : start + BATCH])
                self._refresh()
        rows = [self._rows[key] for key in keys]
        if self._map is None or self._map.shape[0] <= max(rows):
            count = self._data.stat().st_size // self._width if self._data.is_file() else 0
            if count <= max(rows):
                raise self._damaged(f"{count} rows, the index names row {max(rows)}")
            self._map = np.memmap(self._data, dtype=np.float32, mode="r", shape=(count, *self.shape))
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
                    break  # half a line: its writer was killed or is still writing
                self._read += len(line)
                try:
                    key, row = json.loads(line)
                    if not isinstance(key, str) or type(row) is not int or row < 0:
                        raise ValueError("not a key and the number of a row")
                except (ValueError, TypeError, RecursionError) as error:
                    raise self._damaged(f"the index holds {line[:80]!r}: {error}") from None
                self._rows[key] = row

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.folder}: damaged feature cache ({what}); remove this folder, it is made again")

    def _append(self, keys: list[str]) -> None:
        values = self.compute(keys).astype(np.float32).reshape(len(keys), -1)
        size = self._data.stat().st_size if self._data.exists() else 0
        start = -(-size // self._width)  # a row cut short by a kill is passed over
        with self._data.open("r+b" if size else "wb") as file:
            file.seek(start * self._width)
            file.write(values.tobytes())
        existing = self._index.read_bytes() if self._index.exists() else b""
        with self._index.open("ab") as file:
            if existing and not existing.endswith(b"\n"):
                file.truncate(existing.rfind(b"\n") + 1)
            for offset, key in enumerate(keys):
                file.write((json.dumps([key, start + offset]) + "\n").encode())
