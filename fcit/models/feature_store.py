"""The file of frozen features below one image root: rows that several processes append to and map into memory."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from filelock import FileLock

from fcit.errors import DataError
from fcit.io.console import Ticker

#: Features of several images as a store gives them.
R = TypeVar("R")

# Features are always computed in zero-padded batches of this size, so that a row does not depend on
# which other images were missing from the cache.
BATCH = 32


class FeatureStore(Generic[R]):
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
        compute: Callable[[Sequence[str]], Any],
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

    def get(self, keys: Sequence[str]) -> R:
        """Rows of ``keys`` as ``(len(keys), *shape)``, computing what is missing.

        Raises:
            DataError: the files are damaged.
        """
        with self._turn:
            self.fill(keys)
            missing = self._missing(keys)
            return self._mixed(keys, missing) if missing else self._kept(keys)

    def kept(self, keys: Sequence[str]) -> R | None:
        """As :meth:`get` where every row is stored, else None.

        Raises:
            DataError: the files are damaged.
        """
        with self._turn:
            return None if self._missing(keys) else self._kept(keys)

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
                if not self._room(self._needed(chunk)):
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

    def _needed(self, keys: Sequence[str]) -> int:
        """How many rows these keys will have."""
        return len(keys)

    def _computed(self, keys: Sequence[str]) -> dict[str, Any]:
        rows = self.compute(keys).astype(self._dtype).reshape(len(keys), *self.shape)
        return dict(zip(keys, rows, strict=True))

    def _kept(self, keys: Sequence[str]) -> R:
        """What is stored for keys that are."""
        stored: Any = self._stored(np.array([self._rows[key] for key in keys]))
        return stored

    def _mixed(self, keys: Sequence[str], missing: Sequence[str]) -> R:
        """For keys of which some are not stored, and computed for this once."""
        fresh: dict[str, Any] = {}
        for start in range(0, len(missing), BATCH):
            fresh |= self._computed(missing[start : start + BATCH])
        stored: Any = [key for key in dict.fromkeys(keys) if key not in fresh]
        if stored:
            fresh |= dict(zip(stored, self._stored(np.array([self._rows[key] for key in stored])), strict=True))
        mixed: Any = np.stack([fresh[key] for key in keys])
        return mixed

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the file by their numbers; at least one."""
        last = int(rows.max())
        if self._map is None or self._map.shape[0] <= last:
            count = self._data.stat().st_size // self._width if self._data.is_file() else 0
            if count <= last:
                raise self._damaged(f"{count} rows, the index names row {last}")
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
                    self._enter(*json.loads(line))
                except (ValueError, TypeError, RecursionError) as error:
                    raise self._damaged(f"the index holds {line[:80]!r}: {error}") from None

    def _enter(self, key: Any, row: Any) -> None:
        """Take note of an entry of the index.

        Raises:
            ValueError, TypeError: it is none.
        """
        if not isinstance(key, str) or type(row) is not int or row < 0:
            raise ValueError("not a key and the number of a row")
        self._rows[key] = row

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"{self.folder}: damaged feature cache ({problem}); remove this folder, it is made again")

    def _append(self, keys: Sequence[str]) -> None:
        start = self._write(np.stack(list(self._computed(keys).values())))
        self._list([[key, start + offset] for offset, key in enumerate(keys)])

    def _write(self, rows: np.ndarray) -> int:
        """Append rows to the file; returns the number of the first."""
        size = self._data.stat().st_size if self._data.exists() else 0
        start = -(-size // self._width)  # a row left incomplete by a killed process is skipped
        with self._data.open("r+b" if size else "wb") as file:
            file.seek(start * self._width)
            file.write(rows.tobytes())
        return start

    def _list(self, entries: Sequence[Any]) -> None:
        """Append entries to the index."""
        existing = self._index.read_bytes() if self._index.exists() else b""
        with self._index.open("ab") as file:
            if existing and not existing.endswith(b"\n"):
                file.truncate(existing.rfind(b"\n") + 1)
            for entry in entries:
                file.write((json.dumps(entry) + "\n").encode())
