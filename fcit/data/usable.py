"""Which records can be used: bad ones are passed over up to a share, the same ones wherever they are read."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL
from filelock import FileLock

from fcit import strict
from fcit.data.records import MAX_IMAGE_BYTES, MAX_PIXELS, Survey, image_path, open_image, survey_train
from fcit.errors import DataError

SHOWN = 20  # problems shown at once


def stamp(path: Path) -> str:
    """What changes when a file is changed in place."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


class ImageVerdicts:
    """Whether images below a root can be decoded. Each is decoded once, however often it is asked for.

    Args:
        root: the image root.
        folder: where verdicts are kept between processes; None: in memory only.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.root = root
        self._known: dict[str, str | None] = {}  # image|stamp -> why it cannot be used, or None
        self._file: Path | None = None
        if folder is not None:
            origin = (str(root.resolve()), PIL.__version__, MAX_PIXELS, MAX_IMAGE_BYTES)
            self._file = folder / f"{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]}.jsonl"
            self._load(self._file)

    def _load(self, file: Path) -> None:
        if not file.is_file():
            return
        for line in file.read_bytes().splitlines():
            try:
                key, verdict = strict.parse_json(line.decode("utf-8"))
            except (ValueError, TypeError):
                continue  # half a line: its writer was killed; the image is looked at again
            if isinstance(key, str) and (verdict is None or isinstance(verdict, str)):
                self._known[key] = verdict

    def problems(self, images: Iterable[str]) -> dict[str, str]:
        """The images that cannot be used, and why."""
        found: dict[str, str] = {}
        keys: dict[str, str] = {}
        for image in dict.fromkeys(images):
            try:
                keys[image] = f"{image}|{stamp(image_path(self.root, image))}"
            except (DataError, OSError) as error:  # may be there the next time: not kept
                found[image] = str(error)
        self._decode([image for image, key in keys.items() if key not in self._known], keys)
        for image, key in keys.items():
            verdict = self._known[key]
            if verdict is not None:
                found[image] = verdict
        return found

    def _decode(self, images: list[str], keys: dict[str, str]) -> None:
        """Look at images that are new; Pillow decodes beside other threads."""
        if not images:
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            new = dict(zip((keys[i] for i in images), pool.map(self._verdict, images), strict=True))
        self._known |= new
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(pair) + "\n" for pair in new.items())
            with FileLock(f"{self._file}.lock"), self._file.open("ab+") as file:
                torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                file.write((b"\n" if torn else b"") + text.encode())

    def _verdict(self, image: str) -> str | None:
        try:
            open_image(self.root, image)
        except DataError as error:
            return str(error)
        return None


class Usable:
    """The records of a training file that can be used.

    Args:
        survey: the file.
        verdicts: of its images; None where the images are our own.

    Attributes:
        records: in the file's order.
        skipped: how many others there are.
    """

    def __init__(self, survey: Survey, verdicts: ImageVerdicts | None) -> None:
        problems = dict(survey.problems)
        if verdicts is not None:
            bad = verdicts.problems(r.image for r in survey.records if r is not None)
            problems |= {n: bad[r.image] for n, r in enumerate(survey.records) if r is not None and r.image in bad}
        self.records = [r for n, r in enumerate(survey.records) if r is not None and n not in problems]
        self.skipped = len(problems)
        # What is said is made now: nobody keeps a whole file in memory for it.
        self._path, self._total = survey.path, len(survey.records)
        self._first = replace(survey, problems=problems).sentences(SHOWN)

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


def read_usable(path: Path, verdicts: ImageVerdicts | None, share: float) -> Usable:
    """Read a training file of which at most ``share`` of the records may be passed over.

    Raises:
        DataError: the file is broken as a whole, or more of its records are than that.
    """
    usable = Usable(survey_train(path), verdicts)
    problems = usable.excess(share)
    if problems:
        raise DataError(f"{problems[-1]} (first: {problems[0]})")
    return usable
