"""Frozen vision features, computed once: one row per image in a memory-mapped file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

# Features are always computed in zero-padded batches of this size, so that a row does not depend on
# which other images happened to be missing at the time.
BATCH = 32


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
        """Rows of ``keys`` as ``(len(keys), *shape)`` float32, computing what is missing."""
        missing = self._missing(keys)
        if missing:
            with self._lock:
                missing = self._missing(keys)  # another process may have been quicker
                for start in range(0, len(missing), BATCH):
                    self._append(missing[start : start + BATCH])
                self._refresh()
        rows = [self._rows[key] for key in keys]
        if self._map is None or self._map.shape[0] <= max(rows):
            count = self._data.stat().st_size // self._width
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
                key, row = json.loads(line)
                self._rows[key] = row

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
