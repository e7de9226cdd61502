"""Opening images: which files, and within which bounds.

How an opened image becomes pixels is in :mod:`fcit.data.images.pixels`.

The published trainer sets ``ImageFile.LOAD_TRUNCATED_IMAGES`` (ETrain/Dataset/LLaVA/llava_dataset.py of its code), so
that it learns from the upper part of a truncated file and from grey below. Here a truncated picture cannot be read: the
run stops before it starts, or passes over its record as far as ``max_bad_share`` allows.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from fcit.config.kinds import Way
from fcit.data.images.pixels import SIDEWAYS, as_rgb, flat, orientation
from fcit.errors import DataError
from fcit.io import bounded

MAX_IMAGE_BYTES = 100 * 2**20
MAX_PIXELS = 50_000_000  # decoded, 200 MB: Pillow keeps four bytes for each
#: Of width and height. Padded to a square (``backbone.pad_to_square``) and prepared for the model such a picture takes
#: up to 1.5 GB, one of 16,384 pixels would take 3.8.
MAX_SIDE = 10_000
MAX_TILE = 2**24  # pixels of a TIFF's tile, which is decoded whole however little of it belongs to the picture
#: Formats with a decoder of Pillow's own: its EPS, for one, starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class Unreadable(DataError):
    """The file could not be read this time; its content may be good."""


def image_path(root: Path, relative: str) -> Path:
    """Resolve an image path inside ``root``.

    Raises:
        DataError: the path or a link on it leaves the root, or it is no ordinary file.
    """
    base = root.resolve()
    name = bounded.shown(relative)
    if "\0" in relative or not bounded.is_text(relative):
        raise DataError(f"image {name} is not a path")
    try:
        path = (base / relative).resolve()
        if not path.is_relative_to(base):
            raise DataError(f"image {name} leaves the image root {root}; only files inside it are opened")
        if path.is_file():
            return path
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise DataError(f"image {name} is not a path that can be followed under {root} ({error})") from None
    if exists and not path.is_dir():
        raise DataError(f"image {name} is not an ordinary file under {root}; pipes and devices are not opened")
    raise DataError(f"image {name} is missing under {root}")


# ---------------------------------------------------------------------- opening


def open_image(root: Path, relative: str, way: Way = "official") -> Image.Image:
    """Open an image inside ``root`` as RGB; of an animation or a file of several pages, the first.

    Its size is read from its header and bounded before anything is decoded. A warning of Pillow's is shown once for
    each file, with its name.

    Raises:
        DataError: outside the root, missing, truncated, too large or not an image.
    """
    path = image_path(root, relative)
    with _opened(path, _read(path)) as image:
        return as_rgb(image, way)


def bytes_of(root: Path, relative: str) -> bytes:
    """The bytes of a file inside ``root``, as they are.

    Raises:
        DataError: outside the root, missing, not readable, or larger than any picture may be.
    """
    return _read(image_path(root, relative))


def decoded(content: bytes, name: str, way: Way = "official", pixels: int = MAX_PIXELS) -> Image.Image:
    """An image that lies in memory as RGB; it is called ``name`` in messages.

    Args:
        pixels: of the largest image that is decoded, at most :data:`MAX_PIXELS`.

    Raises:
        DataError: as :func:`open_image`.
    """
    with _opened(name, content, pixels) as image:
        return as_rgb(image, way)


@dataclass(frozen=True)
class Look:
    """What an image that can be used looks like.

    Attributes:
        content: first sixteen hexadecimal digits of the SHA-256 of its file.
        rotated: its EXIF orientation is not upright.
        transparent: at least one of its pixels is not opaque.
        single: the official way makes it one single colour.
    """

    content: str
    rotated: bool
    transparent: bool
    single: bool


def look_at(root: Path, relative: str) -> Look:
    """Open an image inside ``root`` and describe it.

    Raises:
        DataError: as :func:`open_image`.
    """
    path = image_path(root, relative)
    content = _read(path)
    with _opened(path, content) as image:
        plain, turned = flat(image), orientation(image) != 1
        alpha = plain.convert("RGBA").getchannel("A").getextrema()[0] if plain.has_transparency_data else 255
        single = as_rgb(image).getcolors(1) is not None  # None: more than one
    return Look(_digest(content), turned, alpha != 255, single)


def size_of(root: Path, relative: str, way: Way = "official") -> tuple[int, int]:
    """Width and height of an image inside ``root`` as :func:`open_image` would give it.

    Only the header is read, unless what turns the image may stand behind its pixels (PNG), or Pillow turns it by
    itself when it is decoded (TIFF).

    Raises:
        DataError: as :func:`open_image`, but for what only decoding shows.
    """
    path = image_path(root, relative)
    with _opened(path, path) as image:
        if image.format == "TIFF" or (way == "upright" and image.format == "PNG"):
            image.load()
        width, height = image.size
        turned = way == "upright" and orientation(image) in SIDEWAYS
    return (height, width) if turned else (width, height)


def look_at_header(root: Path, relative: str) -> None:
    """Whether the header of an image inside ``root`` keeps within the bounds; nothing is decoded.

    Raises:
        DataError: as :func:`open_image`, but for what only decoding shows.
    """
    path = image_path(root, relative)
    with _opened(path, _read(path)):
        pass


def content_of(root: Path, relative: str) -> str:
    """``Look.content`` of a file inside ``root``, which need not be a picture.

    Raises:
        DataError: outside the root, missing, not readable, or larger than any picture may be.
    """
    return _digest(bytes_of(root, relative))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_IMAGE_BYTES:
                raise DataError(f"{path}: {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read of an image")
            return file.read(size)
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def _opened(path: Path | str, content: bytes | Path, pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image in a file or its content, of bounded size and not yet decoded; errors inside name the file.

    Raises:
        DataError: it is too large, or no image that can be decoded.
    """
    try:
        with _collected_warnings() as notes, Image.open(_source(content), formats=FORMATS) as image:
            _bound(path, image, pixels)
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: more pixels than the {MAX_PIXELS:,} that are decoded") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image ({', '.join(FORMATS)}), perhaps truncated") from None
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise whatever a broken file leads them into)
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({', '.join(FORMATS)}), perhaps truncated: {reason}") from None
    _warn(path, notes)


def _source(content: bytes | Path) -> io.BytesIO | Path:
    return content if isinstance(content, Path) else io.BytesIO(content)


def _bound(path: Path | str, image: Image.Image, pixels: int) -> None:
    width, height = image.size
    if width * height > pixels:
        raise DataError(f"{path}: {width} x {height} pixels, more than {pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{path}: {width} x {height} pixels, a side of more than {MAX_SIDE:,}")
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        tile = tags.get(322, 0) * tags.get(323, 0)  # TileWidth, TileLength
        if tile > MAX_TILE:
            raise DataError(f"{path}: tiles of {tile:,} pixels, more than {MAX_TILE:,}")


# ---------------------------------------------------------------------- warnings


class _WarningCollector:
    """Pillow's warnings by thread: images are decoded in several threads, and ``warnings`` is one for all of them."""

    def __init__(self) -> None:
        self.lock, self.local = threading.Lock(), threading.local()
        self.collecting = 0
        self.before: warnings.catch_warnings[None] | None = None
        self.shown: Any = None  # shows the warnings of all other threads

    def start(self) -> list[str]:
        self.local.notes = []
        with self.lock:
            if not self.collecting:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                warnings.filterwarnings("always", module=r"PIL\.")  # else the first alone, of thousands
                self.shown, warnings.showwarning = warnings.showwarning, self.collect
            self.collecting += 1
        return self.local.notes

    def stop(self) -> None:
        self.local.notes = None
        with self.lock:
            self.collecting -= 1
            if not self.collecting and self.before is not None:
                self.before.__exit__(None, None, None)

    def collect(self, message: Warning | str, *where: Any, **more: Any) -> None:
        notes = getattr(self.local, "notes", None)
        if notes is None:
            self.shown(message, *where, **more)
        else:
            notes.append(str(message))


_collector = _WarningCollector()
_warned: set[str] = set()  # files whose warning has been shown


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Inside, this thread's warnings from Pillow are collected in a list."""
    notes = _collector.start()
    try:
        yield notes
    finally:
        _collector.stop()


def _warn(path: Path | str, notes: list[str]) -> None:
    if notes and str(path) not in _warned:
        _warned.add(str(path))
        more = f" (and {len(notes) - 1} more warnings)" if len(notes) > 1 else ""
        warnings.warn(f"{path}: Pillow warns: {notes[0]}{more}", stacklevel=5)
