"""Which records can be used: bad ones are passed over up to a share, the same ones wherever they are read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import PIL
from filelock import FileLock

from fcit import strict
from fcit.data.records import MAX_IMAGE_BYTES, MAX_PIXELS, Record, Survey, image_path, open_image, survey_train
from fcit.data.table import MappedSurvey, Tables, picked
from fcit.errors import DataError

SHOWN = 20  # problems shown at once
AT_ONCE = 2000  # images decoded before what was found is written down
MOST_FOLDERS = 4096  # remembered at once: some data sets have a folder for every image


def stamp(path: Path) -> str:
    """What changes when a file is changed in place."""
    return stamp_of(path.stat())


def stamp_of(status: os.stat_result) -> str:
    """As :func:`stamp`, of what is known of the file already."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _digest(key: bytes) -> int:
    """Eight bytes for a JSON text of ``image|stamp``: a benchmark has hundreds of thousands of them."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


class ImageVerdicts:
    """Whether images below a root can be decoded. Each is decoded once, however often it is asked for.

    Of a good image eight bytes are remembered (of a million good ones and a new one, two share them
    with probability 5e-14); of a bad one, why it cannot be used.

    Args:
        root: the image root.
        folder: where verdicts are kept between processes; None: in memory only.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.root = root
        self._good = np.empty(0, dtype=np.uint64)
        self._bad: dict[str, str] = {}  # JSON text of image|stamp -> why it cannot be used
        self._folders: dict[str, str | None] = {}  # followed once
        self._file: Path | None = None
        if folder is not None:
            origin = (str(root.resolve()), PIL.__version__, MAX_PIXELS, MAX_IMAGE_BYTES)
            self._file = folder / f"{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]}.jsonl"
            self._load(self._file)

    def _load(self, file: Path) -> None:
        if not file.is_file():
            return
        good = []
        with file.open("rb") as lines:
            for line in lines:
                if line.startswith(b'["') and line.endswith(b'", null]\n'):
                    good.append(_digest(line[1:-8]))
                    continue
                try:
                    key, verdict = strict.parse_json(line.decode("utf-8"))
                except (ValueError, TypeError):
                    continue  # half a line: its writer was killed; the image is looked at again
                if isinstance(key, str) and isinstance(verdict, str):
                    self._bad[json.dumps(key)] = verdict
        self._good = np.unique(np.array(good, dtype=np.uint64))

    def _new(self, keys: list[str]) -> list[bool]:
        """Which of these nothing is known of."""
        digests = np.array([_digest(key.encode()) for key in keys], dtype=np.uint64)
        good = np.isin(digests, self._good)
        return [not known and key not in self._bad for key, known in zip(keys, good, strict=True)]

    def status(self, image: str) -> os.stat_result:
        """What ``image_path`` would find; folders are followed once, which is most of the work for many images.

        Raises:
            DataError, OSError: as there.
        """
        folder, _, name = image.rpartition("/")
        if folder not in self._folders:
            if len(self._folders) >= MOST_FOLDERS:
                self._folders.clear()
            self._folders[folder] = _inside(self.root, folder)
        base = self._folders[folder]
        if base is not None and name not in ("", ".", ".."):
            try:
                status = os.lstat(f"{base}/{name}")
            except (OSError, ValueError):
                return image_path(self.root, image).stat()  # says what is wrong
            if stat.S_ISREG(status.st_mode):
                return status
        return image_path(self.root, image).stat()

    def problems(self, images: Iterable[str]) -> dict[str, str]:
        """The images that cannot be used, and why."""
        found: dict[str, str] = {}
        keys: dict[str, str] = {}
        for image in dict.fromkeys(images):
            try:
                keys[image] = json.dumps(f"{image}|{stamp_of(self.status(image))}")
            except (DataError, OSError) as error:  # may be there the next time: not kept
                found[image] = str(error)
        new = [image for image, is_new in zip(keys, self._new(list(keys.values())), strict=True) if is_new]
        self._decode(new, keys)
        return found | {image: self._bad[key] for image, key in keys.items() if key in self._bad}

    def _decode(self, images: list[str], keys: dict[str, str]) -> None:
        """Look at images that are new; Pillow decodes beside other threads."""
        if not images:
            return
        from fcit.data.bar import counting  # rich takes a while to import

        bar = counting(len(images))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
            task = bar.add_task("looking at images", total=len(images))
            for start in range(0, len(images), AT_ONCE):
                stretch = images[start : start + AT_ONCE]
                new: dict[str, str | None] = {}
                for image, verdict in zip(stretch, pool.map(self._verdict, stretch), strict=True):
                    new[keys[image]] = verdict
                    bar.advance(task)
                self._remember(new)

    def _remember(self, new: dict[str, str | None]) -> None:
        """Keep verdicts, here and for other processes; an interruption loses one stretch at most."""
        good = [_digest(key.encode()) for key, verdict in new.items() if verdict is None]
        self._good = np.union1d(self._good, np.array(good, dtype=np.uint64))
        self._bad |= {key: verdict for key, verdict in new.items() if verdict is not None}
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f"[{key}, {json.dumps(verdict)}]\n" for key, verdict in new.items())
            with FileLock(f"{self._file}.lock"), self._file.open("ab+") as file:
                torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                file.write((b"\n" if torn else b"") + text.encode())

    def _verdict(self, image: str) -> str | None:
        try:
            open_image(self.root, image)
        except DataError as error:
            return str(error)
        return None


def _inside(root: Path, folder: str) -> str | None:
    """A folder with all links followed, if it is one below the root."""
    try:
        base, path = root.resolve(), (root / folder).resolve()
        return str(path) if path.is_relative_to(base) and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


class Usable:
    """The records of a training file that can be used.

    Args:
        survey: the file.
        verdicts: of its images; None where the images are our own.
        folder: what its image names are relative to, under the root of ``verdicts``.
        only: positions of the records asked for; None: all.

    Attributes:
        records: in the file's order.
        skipped: how many others there are.
    """

    def __init__(
        self, survey: Survey | MappedSurvey, verdicts: ImageVerdicts | None, folder: str = "",
        only: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        asked = range(len(survey.records)) if only is None else only
        problems = survey.problems if only is None else {n: survey.problems[n] for n in only if n in survey.problems}
        if verdicts is not None:
            images = [placed(folder, r.image) if r is not None else None for r in picked(survey.records, asked)]
            bad = verdicts.problems(image for image in images if image is not None)
            unseen = {n: bad[i] for n, i in zip(asked, images, strict=True) if i in bad and i is not None}
            problems = {**problems, **unseen}
        good = [n for n in asked if n not in problems] if problems else asked
        self.records = cast("Sequence[Record]", picked(survey.records, good))  # what is None has a problem
        self.skipped = len(problems)
        # What is said is made now: nobody keeps a whole file in memory for it.
        self._path, self._total = survey.path, len(asked)
        self._first = survey.sentences(SHOWN, problems) if problems else []

    def excess(self, share: float) -> list[str]:
        """If more than ``share`` of the records cannot be used, the first problems and a sentence about all."""
        allowed = math.floor(share * self._total + 1e-9)
        if self.skipped <= allowed:
            return []
        enough = math.ceil(100 * self.skipped / self._total) / 100
        way_out = f", or raise max_bad_share to {enough:g}" if enough < 1 else ""
        return [
            *self._first,
            *([f"... and {self.skipped - SHOWN} more"] if self.skipped > SHOWN else []),
            f"{self._path}: {self.skipped} of {self._total} records cannot be used, max_bad_share: {share:g} lets "
            f"{allowed} be passed over; repair them{way_out}",
        ]


def placed(folder: str, image: str) -> str:
    """An image's name from the image root, where a data set gives it from a folder of its own."""
    return f"{folder}/{image}" if folder else image


def read_usable(path: Path, verdicts: ImageVerdicts | None, share: float, tables: Tables | None = None) -> Usable:
    """Read a training file of which at most ``share`` of the records may be passed over.

    Args:
        tables: keeps large files out of memory; None: records are a list.

    Raises:
        DataError: the file is broken as a whole, or more of its records are than that.
    """
    usable = Usable(tables.train(path) if tables else survey_train(path), verdicts)
    problems = usable.excess(share)
    if problems:
        raise DataError(f"{problems[-1]} (first: {problems[0]})")
    return usable
