"""The images of a request: data URLs, or files below one folder; nothing is fetched."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from urllib.parse import unquote

from fcit.config.kinds import Way
from fcit.data.images.opening import bytes_of, decoded
from fcit.errors import DataError
from fcit.serve.problems import Problem

PARAM = "messages"


def write(url: str, number: int, root: Path | None, file: Path, way: Way, pixels: int) -> None:
    """Decode an image and write its pixels to ``file``, where the model reads them.

    So a damaged image is an error of its own request, and a file that changes later changes nothing.

    Args:
        url: ``data:image/...;base64,...``, ``file://`` and a path, or a path relative to ``root``.
        number: of the image, for messages.
        root: the folder that files may be of, links followed; None: none may.
        way: ``data.pictures`` of the run.
        pixels: of the largest image.

    Raises:
        Problem: no such image, one outside ``root``, or one that cannot be decoded.
    """
    name = f"image {number}"
    try:
        decoded(_content(url, name, root), name, way, pixels).save(file, "PPM")
    except DataError as error:
        raise Problem(400, str(error), param=PARAM, code="invalid_image") from None


def _content(url: str, name: str, root: Path | None) -> bytes:
    scheme, mark, rest = url.partition(":")
    if mark and scheme.lower() == "data":
        return _data(rest, name)
    if mark and scheme.lower() in ("http", "https"):
        raise DataError(f"{name}: the server fetches nothing; send the image itself as a data: URL")
    if root is None:
        raise DataError(f"{name}: files are not served (fcit serve --images DIR); send the image as a data: URL")
    path = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
    try:
        return bytes_of(root, path)
    except DataError:  # its text names folders of this machine
        raise DataError(f"{name}: no image of that name below the server's folder of images") from None


def _data(rest: str, name: str) -> bytes:
    head, comma, body = rest.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"{name}: a data: URL must be data:image/...;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{name}: what follows ;base64, is not base64") from None
