"""SHA-256 of image files: each computed once and kept by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock

from fcit.data.images.verdicts import ImageVerdicts, stamp_of
from fcit.errors import DataError
from fcit.io.threads import cores

BLOCK = 2**16  # bytes read at once
AT_ONCE = 2000  # images hashed before their hashes are written down
#: What is kept of an image: eight bytes for its name, size and time, and its hash.
ENTRY = np.dtype([("key", "<u8"), ("sha256", "V32")])
UNREADABLE = "unreadable"  # stands for the hash of an image that is missing


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _pairs(hashes: Mapping[str, str]) -> list[str]:
    """One text an image, of its name and its hash, in the order of the names."""
    return [f'[{json.dumps(name)}, "{hashes[name]}"]' for name in sorted(hashes)]  # a JSON list of both


def _together(pairs: list[str]) -> str:
    return hashlib.sha256("".join(f"{pair}\n" for pair in pairs).encode()).hexdigest()


def together(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over the sorted (name, hash) pairs of images."""
    return _together(_pairs(hashes))


class ImageHashes:
    """Content hashes of the images below a root.

    A file is read again when its size or its time of change (in nanoseconds) is another. Of a million
    images two share a key with probability 5e-14 each, and then the second is not read.

    Args:
        root: the image root.
        folder: where hashes are kept between processes. Where it cannot be written they are computed each time.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        origin = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self._file = folder / f"{origin}.sha256"
        self._known = np.empty(0, dtype=ENTRY)
        if self._file.is_file():
            kept = self._file.read_bytes()
            whole = len(kept) // ENTRY.itemsize  # a writer that was killed leaves part of an entry
            self._known = np.sort(np.frombuffer(kept, dtype=ENTRY, count=whole), order="key")

    def of(self, images: Iterable[str]) -> dict[str, str]:
        """The hash of every image, hexadecimal; :data:`UNREADABLE` where it cannot be read."""
        hashes: dict[str, str] = {}
        keys: dict[str, int] = {}
        look = ImageVerdicts(self.root, None)  # a new one follows links anew
        for image in dict.fromkeys(images):
            try:
                keys[image] = _short(f"{image}|{stamp_of(look.status(image))}")
            except (DataError, OSError):
                hashes[image] = UNREADABLE
        wanted = np.array(list(keys.values()), dtype=np.uint64)
        at = np.searchsorted(self._known["key"], wanted)
        known = at < len(self._known)
        known[known] = self._known["key"][at[known]] == wanted[known]
        new = [image for image, is_known in zip(keys, known, strict=True) if not is_known]
        texts = self._known["sha256"][at[known]].tobytes().hex()
        old = (image for image, is_known in zip(keys, known, strict=True) if is_known)
        hashes |= {image: texts[start : start + 64] for image, start in zip(old, range(0, len(texts), 64), strict=True)}
        return hashes | self._read(new, keys)

    def _read(self, images: list[str], keys: dict[str, int]) -> dict[str, str]:
        """Hash images whose hash is not kept; an interruption loses one stretch at most."""
        if not images:
            return {}
        from fcit.io.console import progress_bar

        hashes: dict[str, str] = {}
        bar = progress_bar(len(images))
        with ThreadPoolExecutor(min(8, cores())) as pool, bar:
            task = bar.add_task("fingerprints of images", total=len(images))
            for start in range(0, len(images), AT_ONCE):
                stretch = images[start : start + AT_ONCE]
                for image, sha in zip(stretch, pool.map(self._hash, stretch), strict=True):
                    hashes[image] = sha
                    bar.advance(task)
                readable = [(keys[i], bytes.fromhex(hashes[i])) for i in stretch if hashes[i] != UNREADABLE]
                self._keep(np.array(readable, dtype=ENTRY))
        return hashes

    def _hash(self, image: str) -> str:
        digest = hashlib.sha256()
        try:
            # Most images are small: no buffer of a quarter of a megabyte for each, as hashlib.file_digest has it.
            with (self.root / image).open("rb", buffering=0) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError:
            return UNREADABLE
        return digest.hexdigest()

    def _keep(self, entries: np.ndarray) -> None:
        self._known = np.sort(np.concatenate([self._known, entries]), order="key")
        with contextlib.suppress(OSError):  # they are only computed again
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._file}.lock"), self._file.open("ab") as file:
                file.truncate(file.tell() // ENTRY.itemsize * ENTRY.itemsize)
                file.write(entries.tobytes())

    # ------------------------------------------------------------------ sets

    def _set(self, sha: str) -> Path:
        return self.folder / "sets" / sha

    def remember(self, hashes: Mapping[str, str]) -> str:
        """One hash for a set of images, by which :meth:`differing` finds it later."""
        pairs = _pairs(hashes)
        sha = _together(pairs)
        with contextlib.suppress(OSError):  # then :meth:`differing` cannot name the images
            if not self._set(sha).is_file():
                self._set(sha).parent.mkdir(parents=True, exist_ok=True)
                staging = self._set(sha).with_suffix(f".{os.getpid()}")
                staging.write_bytes(np.array([_short(pair) for pair in pairs], dtype="<u8").tobytes())
                staging.replace(self._set(sha))
        return sha

    def differing(self, before: str, hashes: Mapping[str, str]) -> list[str]:
        """Images that are not as in the set remembered before, or new; empty where the set is no longer kept."""
        try:
            known = np.frombuffer(self._set(before).read_bytes(), dtype="<u8")
        except (OSError, ValueError):
            return []
        present = np.array([_short(pair) for pair in _pairs(hashes)], dtype="<u8")
        return [name for name, same in zip(sorted(hashes), np.isin(present, known), strict=True) if not same]
