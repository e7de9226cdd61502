"""Pictures embedded in rows become files below the image root, once; their bytes are not changed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from fcit.data.images.opening import FORMATS, MAX_IMAGE_BYTES
from fcit.errors import DataError

FOLDER = "unpacked"
_ENDINGS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


class Unpacked:
    """The pictures of one source, ``<root>/unpacked/<source>/<16 hex digits of SHA-256>.<ending by content>``.

    Only headers are read here: whether an image can be decoded is checked with all others.

    Args:
        root: the folder that image names are relative to; None: embedded images cannot be used.
        source: names the folder of this source.
        within: folders from which a picture that is named by its full path is taken, too.
    """

    def __init__(self, root: Path | None, source: str, within: tuple[Path, ...] = ()) -> None:
        self._root, self._within = root, within
        self._folder = f"{FOLDER}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', source).strip('-.') or 'data'}"
        self._known: set[str] = set()

    def names(self, value: Any) -> Any:
        """A value with a name, relative to the root, in place of every picture in it.

        Raises:
            ValueError: a picture that cannot be used.
            DataError: the folder below the root cannot be written.
        """
        if isinstance(value, bytes):
            return self._name(value)
        if isinstance(value, list):
            return [self.names(part) for part in value]
        if not isinstance(value, dict):
            return value
        if value and value.keys() <= {"bytes", "path"}:  # as the Image feature keeps them
            content = value.get("bytes")
            return self._name(content) if content is not None else self._path(value.get("path"))
        return {key: self.names(part) for key, part in value.items()}

    def _path(self, name: Any) -> Any:
        """The name of a picture that is not embedded; one from the hub lies in its library's folders."""
        if not isinstance(name, str) or "\0" in name or not Path(name).is_absolute():
            return name
        path = Path(name).resolve()
        if not any(path.is_relative_to(folder.resolve()) for folder in self._within) or not path.is_file():
            return name
        with path.open("rb") as file:
            return self._name(file.read(MAX_IMAGE_BYTES + 1))

    def _name(self, content: bytes) -> str:
        if self._root is None:
            raise ValueError("has an embedded image, and there is no image folder to unpack it into")
        if len(content) > MAX_IMAGE_BYTES:
            raise ValueError(f"has an embedded image of more than the {MAX_IMAGE_BYTES:,} bytes that are read of one")
        name = f"{self._folder}/{hashlib.sha256(content).hexdigest()[:16]}.{_ending(content)}"
        if name not in self._known:
            try:
                _keep(self._root / name, content)
            except OSError as error:
                raise DataError(
                    f"{self._root / self._folder}: embedded images cannot be unpacked there ({error}); make it "
                    "writable and give it room, or name another folder by `images` in the benchmark file"
                ) from None
            self._known.add(name)
        return name


def _ending(content: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images; reported when all images are checked
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _ENDINGS.get(str(image.format), str(image.format).lower())
    except Exception as error:  # noqa: BLE001  (Pillow raises whatever a broken file leads it into)
        reason = "" if isinstance(error, OSError) else f": {error}"  # that of an OSError names an object in memory
        raise ValueError(
            f"has an embedded image that is not readable ({', '.join(FORMATS)}; {len(content):,} bytes){reason}"
        ) from None


def _keep(file: Path, content: bytes) -> None:
    """Write a file all at once; what has its name has its content."""
    try:
        if file.stat().st_size == len(content):
            return
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        staging.write_bytes(content)
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
