"""Which images can be used, and what they look like: each is decoded once, and the result is kept."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from fcit.data.images.memory import ImageMemory, ImageResult, Passing, key_of
from fcit.data.images.opening import (
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
from fcit.errors import DataError
from fcit.io.threads import cores

AT_ONCE = 2000  # images decoded before their results are written down
MOST_FOLDERS = 4096  # remembered at once: some data sets have a folder for every image


def stamp_of(status: os.stat_result) -> str:
    """What changes when a file is changed in place."""
    return f"{status.st_size}-{status.st_mtime_ns}"


class ImageVerdicts:
    """Whether the images below a root can be decoded, and what they look like.

    Each image is decoded once, however often it is asked for, and again only when its file changes.

    Args:
        root: the image root.
        folder: where verdicts are kept between processes; None: in memory only.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.root = root
        self._folders: dict[str, str | None] = {}  # folder -> where its links lead, if below the root
        if folder is None:
            self._memory = ImageMemory(None)
            return
        # Versions of fcit that did not bound sides named their files by the other bounds alone.
        before = (str(root.resolve()), PIL.__version__, MAX_PIXELS, MAX_IMAGE_BYTES)
        older, file = (
            folder / f"{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]}.jsonl"
            for origin in (before, (*before, MAX_SIDE, MAX_TILE))
        )
        self._memory = ImageMemory(file, older)

    def status(self, image: str) -> os.stat_result:
        """The status of the file that ``image_path`` finds.

        The links of each folder are followed once for images asked for together, which is most of the work.

        Raises:
            DataError, OSError: as :func:`fcit.data.images.opening.image_path`.
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
                return image_path(self.root, image).stat()  # its error says what is wrong
            if stat.S_ISREG(status.st_mode):
                return status
        return image_path(self.root, image).stat()

    def stamp(self, images: Iterable[str]) -> str:
        """Names the present files of images; another text as soon as one of them is replaced, gone or there again."""
        keys, missing = self._keys(images)
        content = json.dumps([str(self.root.resolve()), sorted(keys.values()), sorted(missing)])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def _keys(self, images: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The key of each image, and the reasons of those that are missing."""
        self._folders.clear()  # links may lead elsewhere than when they were last followed
        keys: dict[str, str] = {}
        missing: dict[str, str] = {}
        for image in dict.fromkeys(images):
            try:
                keys[image] = key_of(image, stamp_of(self.status(image)))
            except (DataError, OSError) as error:  # it may exist the next time: not kept
                missing[image] = str(error)
        return keys, missing

    def problems(self, images: Iterable[str]) -> dict[str, str]:
        """The images that cannot be used, and why."""
        keys, missing = self._keys(images)
        known = self._memory.known(list(keys.values()))
        self._work("looking at images", self._verdict, [i for i, k in zip(keys, known, strict=True) if not k], keys)
        return missing | {image: self._memory.bad[key] for image, key in keys.items() if key in self._memory.bad}

    def looks(self, images: Iterable[str]) -> dict[str, Look]:
        """What the images that can be used look like."""
        keys, _ = self._keys(images)
        looks = self._memory.looks(list(keys.values()))
        new = [i for i, look in zip(keys, looks, strict=True) if look is None and keys[i] not in self._memory.bad]
        self._work("looking at images", self._look, new, keys)
        looks = self._memory.looks(list(keys.values()))
        return {image: look for image, look in zip(keys, looks, strict=True) if look is not None}

    def contents(self, images: Iterable[str]) -> dict[str, str]:
        """The content hashes (``Look.content``) of the images that exist; none is decoded for it."""
        keys, _ = self._keys(images)
        known = self._memory.contents(list(keys.values()))
        new = [i for i, k in zip(keys, known, strict=True) if not k and keys[i] not in self._memory.bad]
        self._work("reading images", self._content, new, keys)
        known = self._memory.contents(list(keys.values()))
        return {image: content for image, content in zip(keys, known, strict=True) if content}

    def sizes(self, images: Iterable[str]) -> dict[str, int]:
        """Bytes of the images that exist."""
        self._folders.clear()
        sizes: dict[str, int] = {}
        for image in dict.fromkeys(images):
            try:
                sizes[image] = self.status(image).st_size
            except (DataError, OSError):
                continue  # a missing image is reported where images are decoded
        return sizes

    def _work(
        self, what: str, work: Callable[[str, str], ImageResult], images: list[str], keys: dict[str, str]
    ) -> None:
        """Do something with images and remember the results; Pillow decodes in several threads at once."""
        if not images:
            return
        from fcit.io.console import progress_bar  # rich takes a while to import

        bar = progress_bar(len(images))
        with ThreadPoolExecutor(min(8, cores())) as pool, bar:
            task = bar.add_task(what, total=len(images))
            for start in range(0, len(images), AT_ONCE):
                stretch = images[start : start + AT_ONCE]
                new: dict[str, ImageResult] = {}
                results = pool.map(work, stretch, [keys[image] for image in stretch])
                for image, result in zip(stretch, results, strict=True):
                    new[keys[image]] = result
                    bar.advance(task)
                self._memory.remember(new)  # an interruption loses one stretch at most

    def _verdict(self, image: str, key: str) -> ImageResult:
        """Of an image that an older version has decoded, only the bounds that are new are checked."""
        return self._attempt(look_at_header, image) if self._memory.decoded(key) else self._look(image, key)

    def _look(self, image: str, key: str) -> ImageResult:
        return self._attempt(look_at, image)

    def _content(self, image: str, key: str) -> ImageResult:
        return self._attempt(lambda root, name: content_of(root, name).encode(), image)

    def _attempt(self, work: Callable[[Path, str], Look | bytes | None], image: str) -> ImageResult:
        try:
            return work(self.root, image)
        except Unreadable as error:
            return Passing(error)
        except DataError as error:
            return str(error)


def _inside(root: Path, folder: str) -> str | None:
    """A folder with all links followed, if it lies below the root."""
    try:
        base, path = root.resolve(), (root / folder).resolve()
        return str(path) if path.is_relative_to(base) and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None
