"""Which records can be used: bad ones are passed over up to a share, the same ones wherever they are read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import PIL

from fcit.data.pictures import (
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    MAX_TILE,
    Look,
    Unreadable,
    content_of,
    image_path,
    look_at,
    look_at_header,
)
from fcit.data.reading import Survey, survey_train
from fcit.data.records import Record
from fcit.data.seen import Found, Passing, Seen, key_of
from fcit.data.spec import placed
from fcit.data.table import MappedSurvey, Tables, picked
from fcit.data.verdict import Verdict
from fcit.errors import DataError

SHOWN = 20  # problems shown at once
AT_ONCE = 2000  # images decoded before what was found is written down
MOST_FOLDERS = 4096  # remembered at once: some data sets have a folder for every image

#: Says of records at these positions of their file what a model can do with them.
Judged = Callable[[Sequence[int], Sequence[Record]], Verdict]


def stamp(path: Path) -> str:
    """What changes when a file is changed in place."""
    return stamp_of(path.stat())


def stamp_of(status: os.stat_result) -> str:
    """As :func:`stamp`, of what is known of the file already."""
    return f"{status.st_size}-{status.st_mtime_ns}"


class ImageVerdicts:
    """Whether images below a root can be decoded, and what they are. Each is decoded once, however often asked for.

    Args:
        root: the image root.
        folder: where verdicts are kept between processes; None: in memory only.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.root = root
        self._folders: dict[str, str | None] = {}  # followed once
        if folder is None:
            self._seen = Seen(None)
            return
        # Versions that did not bound sides have other names for the same bounds else.
        before = (str(root.resolve()), PIL.__version__, MAX_PIXELS, MAX_IMAGE_BYTES)
        older, file = (
            folder / f"{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]}.jsonl"
            for origin in (before, (*before, MAX_SIDE, MAX_TILE))
        )
        self._seen = Seen(file, older)

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

    def _keys(self, images: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """By which key each image is known, and of those that are not there, why."""
        keys: dict[str, str] = {}
        missing: dict[str, str] = {}
        for image in dict.fromkeys(images):
            try:
                keys[image] = key_of(image, stamp_of(self.status(image)))
            except (DataError, OSError) as error:  # may be there the next time: not kept
                missing[image] = str(error)
        return keys, missing

    def problems(self, images: Iterable[str]) -> dict[str, str]:
        """The images that cannot be used, and why."""
        keys, found = self._keys(images)
        known = self._seen.known(list(keys.values()))
        self._work("looking at images", self._verdict, [i for i, k in zip(keys, known, strict=True) if not k], keys)
        return found | {image: self._seen.bad[key] for image, key in keys.items() if key in self._seen.bad}

    def looks(self, images: Iterable[str]) -> dict[str, Look]:
        """What the images that can be used look like."""
        keys, _ = self._keys(images)
        looks = self._seen.looks(list(keys.values()))
        new = [i for i, look in zip(keys, looks, strict=True) if look is None and keys[i] not in self._seen.bad]
        self._work("looking at images", self._look, new, keys)
        looks = self._seen.looks(list(keys.values()))
        return {image: look for image, look in zip(keys, looks, strict=True) if look is not None}

    def contents(self, images: Iterable[str]) -> dict[str, str]:
        """The contents (as ``Look.content``) of those images that are there; none is decoded for it."""
        keys, _ = self._keys(images)
        known = self._seen.contents(list(keys.values()))
        new = [i for i, k in zip(keys, known, strict=True) if not k and keys[i] not in self._seen.bad]
        self._work("reading images", self._content, new, keys)
        known = self._seen.contents(list(keys.values()))
        return {image: content for image, content in zip(keys, known, strict=True) if content}

    def sizes(self, images: Iterable[str]) -> dict[str, int]:
        """Bytes of those images that are there."""
        found: dict[str, int] = {}
        for image in dict.fromkeys(images):
            try:
                found[image] = self.status(image).st_size
            except (DataError, OSError):
                continue  # told where images are looked at
        return found

    def _work(self, what: str, work: Callable[[str, str], Found], images: list[str], keys: dict[str, str]) -> None:
        """Do something with images and remember what is found; Pillow decodes beside other threads."""
        if not images:
            return
        from fcit.data.bar import counting  # rich takes a while to import

        bar = counting(len(images))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
            task = bar.add_task(what, total=len(images))
            for start in range(0, len(images), AT_ONCE):
                stretch = images[start : start + AT_ONCE]
                new: dict[str, Found] = {}
                found = pool.map(work, stretch, [keys[image] for image in stretch])
                for image, one in zip(stretch, found, strict=True):
                    new[keys[image]] = one
                    bar.advance(task)
                self._seen.remember(new)  # an interruption loses one stretch at most

    def _verdict(self, image: str, key: str) -> Found:
        """What an older version has decoded may still have a side that is too long now."""
        return self._attempt(look_at_header, image) if self._seen.decoded(key) else self._look(image, key)

    def _look(self, image: str, key: str) -> Found:
        return self._attempt(look_at, image)

    def _content(self, image: str, key: str) -> Found:
        return self._attempt(lambda root, name: content_of(root, name).encode(), image)

    def _attempt(self, work: Callable[[Path, str], Look | bytes | None], image: str) -> Found:
        try:
            return work(self.root, image)
        except Unreadable as error:
            return Passing(error)
        except DataError as error:
            return str(error)


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
        judge: what the model says of records that are otherwise good; None: nobody asks it.

    Attributes:
        records: in the file's order.
        skipped: how many others there are.
        verdict: what the judge said.
    """

    def __init__(
        self,
        survey: Survey | MappedSurvey,
        verdicts: ImageVerdicts | None,
        folder: str = "",
        only: Sequence[int] | None = None,
        judge: Judged | None = None,
    ) -> None:
        self.verdict = Verdict()
        asked = range(len(survey.records)) if only is None else only
        problems = survey.problems if only is None else {n: survey.problems[n] for n in only if n in survey.problems}
        if verdicts is not None:
            names = [placed(folder, r.images) if r is not None else () for r in picked(survey.records, asked)]
            bad = verdicts.problems(image for images in names for image in images)
            unseen = {n: bad[i] for n, images in zip(asked, names, strict=True) for i in images if i in bad}
            problems = {**problems, **unseen}
        if judge is not None:
            places = [n for n in asked if n not in problems] if problems else asked
            self.verdict = judge(places, cast("Sequence[Record]", picked(survey.records, places)))
            problems = {**problems, **self.verdict.problems}
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


def read_usable(
    path: Path,
    verdicts: ImageVerdicts | None,
    share: float,
    tables: Tables | None = None,
    judge: Judged | None = None,
    form: str | None = None,
) -> Usable:
    """Read a training file of which at most ``share`` of the records may be passed over.

    Args:
        tables: keeps large files out of memory; None: records are a list.
        judge: as for :class:`Usable`.
        form: the file's format; None: guessed.

    Raises:
        DataError: the file is broken as a whole, or more of its records are than that.
    """
    usable = Usable(tables.train(path, form) if tables else survey_train(path, form), verdicts, judge=judge)
    problems = usable.excess(share)
    if problems:
        raise DataError(f"{problems[-1]} (first: {problems[0]})")
    return usable
