"""Questions as they are put to an assistant: their images below one folder, their text as a test record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fcit.config.kinds import Way
from fcit.data.collate import Encoded
from fcit.data.formats.conversation import images_per_turn, without_tags
from fcit.data.images.pixels import as_rgb
from fcit.data.records import TestRecord
from fcit.errors import DataError

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Question:
    """A question that was found to be answerable.

    Attributes:
        record: it, with the names of its images.
        example: its tokens.
        limit: tokens of the longest answer.
        subspace: the one that answers alone; None: the run's method mixes them.
    """

    record: TestRecord
    example: Encoded
    limit: int
    subspace: str | None = None


def listed(given: Picture | Sequence[Picture] | None) -> list[Picture]:
    """The images of one question."""
    if given is None:
        return []
    return [given] if isinstance(given, str | Path | Image.Image) else list(given)


def record(number: int, names: tuple[str, ...], question: str) -> TestRecord:
    """A question as a test record, without its image tags."""
    try:
        text, tags = without_tags(question)
        images_per_turn([tags], len(names))
    except ValueError as error:
        raise DataError(f"question {number} ({question[:80]!r}): {error}") from None
    return TestRecord(str(number), names, text, "")


def one_root(images: Sequence[Picture], scratch: Path, way: Way) -> tuple[Path, list[str]]:
    """A folder above all images, and their names in it; opened images are written to ``scratch`` without loss."""
    files = []
    for number, image in enumerate(images):
        if isinstance(image, Image.Image):
            file = scratch / f"{number}.png"
            as_rgb(image, way).save(file)
        else:
            file = Path(image)
            if "\0" in str(image) or not file.is_file():
                raise DataError(f"image {str(image)!r}: no such file")
        files.append(file.resolve())
    if not files:
        return scratch, []
    root = Path(os.path.commonpath([file.parent for file in files]))
    return root, [str(file.relative_to(root)) for file in files]
