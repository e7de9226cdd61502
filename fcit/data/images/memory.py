"""What is known of image files, kept between processes by size and time of change: a few bytes for each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from fcit.data.images.opening import Look
from fcit.io import bounded

#: Of a file: the key's digest, the first digits of its content's SHA-256 (0: not known), and the bits below.
_ROW = np.dtype([("key", np.uint64), ("content", np.uint64), ("flags", np.uint8)])
_ROTATED, _TRANSPARENT, _SINGLE, _GOOD, _LOOKED = 1, 2, 4, 8, 16
#: ``[key, null]``: can be used; ``[key, null, content, bits]``: can be used and looks so; ``[key, true, content]``: not
#: decoded yet; ``[key, text]``: cannot be used, and why.
_LINE = re.compile(rb'\[(".*"), (?:null|null, "([0-9a-f]{16})", ([0-7])|true, "([0-9a-f]{16})")\]\n', re.DOTALL)

#: What is known of one file: why it cannot be used, what it looks like, its content hash, or None: it can be used.
ImageResult = str | Look | bytes | None


class Passing(str):
    """Why a file could not be read this time; the next process tries again."""


def key_of(image: str, stamp: str) -> str:
    """The JSON text that identifies a file; a changed file has another stamp and so another key."""
    return json.dumps(f"{image}|{stamp}")


def _digest(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def _row(key: bytes, result: Look | bytes | None) -> tuple[int, int, int]:
    if result is None:
        return _digest(key), 0, _GOOD
    if isinstance(result, bytes):
        return _digest(key), int(result, 16), 0
    bits = result.rotated * _ROTATED + result.transparent * _TRANSPARENT + result.single * _SINGLE
    return _digest(key), int(result.content, 16), _GOOD | _LOOKED | bits


def _line(key: str, result: ImageResult) -> str:
    if isinstance(result, Look):
        bits = _row(b"", result)[2] & (_ROTATED | _TRANSPARENT | _SINGLE)
        return f'[{key}, null, "{result.content}", {bits}]\n'
    if isinstance(result, bytes):
        return f'[{key}, true, "{result.decode()}"]\n'
    return f"[{key}, {json.dumps(result)}]\n"


class ImageMemory:
    """What is known of image files.

    Of a file that can be used seventeen bytes are remembered (of a million and a new one, two share their digest with
    probability 5e-14); of one that cannot, why.

    Args:
        file: where it is kept; None: in memory only.
        older: the file of a version with other bounds: it has decoded the images that it calls good, so they can be.
    """

    def __init__(self, file: Path | None, older: Path | None = None) -> None:
        self.file = file
        self.bad: dict[str, str] = {}  # key -> why it cannot be used
        self._rows = np.empty(0, _ROW)
        self._older = np.empty(0, _ROW)
        if older is not None:
            self._older, _ = _load(older)
        if file is not None:
            self._rows, self.bad = _load(file)

    def known(self, keys: Sequence[str]) -> list[bool]:
        """Of which files it is known whether they can be used."""
        flags = _of(self._rows, keys)["flags"]
        return [bool(flag & _GOOD) or key in self.bad for key, flag in zip(keys, flags, strict=True)]

    def decoded(self, key: str) -> bool:
        """Whether an older version has decoded this file."""
        return bool(_of(self._older, [key])["flags"][0] & _GOOD)

    def looks(self, keys: Sequence[str]) -> list[Look | None]:
        """What files look like; None where that is not known."""
        return [
            Look(f"{content:016x}", bool(flags & _ROTATED), bool(flags & _TRANSPARENT), bool(flags & _SINGLE))
            if flags & _LOOKED
            else None
            for _, content, flags in _of(self._rows, keys).tolist()
        ]

    def contents(self, keys: Sequence[str]) -> list[str]:
        """The contents of files; empty where they are not known."""
        return [f"{content:016x}" if content else "" for content in _of(self._rows, keys)["content"].tolist()]

    def remember(self, new: Mapping[str, ImageResult]) -> None:
        """Keep results, here and, where its folder can be written, for other processes."""
        rows = [_row(key.encode(), result) for key, result in new.items() if not isinstance(result, str)]
        self._rows = _merged(np.concatenate([self._rows, np.array(rows, _ROW)]))
        self.bad |= {key: result for key, result in new.items() if isinstance(result, str)}
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # the next process looks at the files again
            self.file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(_line(key, result) for key, result in new.items() if not isinstance(result, Passing))
            with FileLock(f"{self.file}.lock"), self.file.open("ab+") as file:
                torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                file.write((b"\n" if torn else b"") + text.encode())


def _of(rows: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """The row of each key; zeros where there is none."""
    digests = np.array([_digest(key.encode()) for key in keys], np.uint64)
    matches = np.zeros(len(keys), _ROW)
    if len(rows):
        positions = np.searchsorted(rows["key"], digests).clip(max=len(rows) - 1)
        known = rows["key"][positions] == digests
        matches[known] = rows[positions[known]]
    return matches


def _merged(rows: np.ndarray) -> np.ndarray:
    """Ascending by key, each once with all that is known of it."""
    if not len(rows):
        return rows
    rows = rows[np.argsort(rows["key"], kind="stable")]
    first = np.flatnonzero(np.concatenate([[True], rows["key"][1:] != rows["key"][:-1]]))
    merged = rows[first]
    merged["content"] = np.maximum.reduceat(rows["content"], first)
    merged["flags"] = np.bitwise_or.reduceat(rows["flags"], first)
    return merged


def _load(file: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Rows and reasons of a file, which an older version may have written, and which may end in half a line."""
    if not file.is_file():
        return np.empty(0, _ROW), {}
    rows: list[tuple[int, int, int]] = []
    bad: dict[str, str] = {}
    with file.open("rb") as lines:
        for line in lines:
            match = _LINE.fullmatch(line)
            if match is not None:
                key, content, bits, alone = match.groups()
                flags = _GOOD | _LOOKED | int(bits) if bits else 0 if alone else _GOOD
                rows.append((_digest(key), int(content or alone or b"0", 16), flags))
                continue
            try:
                key_text, reason = bounded.parse_json(line.decode("utf-8"))
            except (ValueError, TypeError):
                continue  # half a line: its writer was killed; the image is decoded again
            if isinstance(key_text, str) and isinstance(reason, str):
                bad[json.dumps(key_text)] = reason
    return _merged(np.array(rows, _ROW)), bad
