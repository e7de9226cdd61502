"""Width and height of the images below a root, by their headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fcit.config.kinds import Way
from fcit.data.images.opening import image_path, size_of
from fcit.data.images.verdicts import ImageVerdicts, stamp_of

REMEMBERED = 200_000  # images of one root


class ImageSizes:
    """Sizes of images, each read once until its file changes.

    Args:
        root: the image root.
        way: ``data.pictures``, which may turn images.
    """

    def __init__(self, root: Path, way: Way = "official") -> None:
        self.root, self.way = root, way
        self._known: dict[tuple[str, str], tuple[int, int]] = {}

    def of(self, image: str) -> tuple[int, int]:
        """Width and height in pixels.

        Raises:
            DataError: outside the root, missing, too large or not an image.
        """
        key = image, stamp_of(image_path(self.root, image).stat())
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = size_of(self.root, image, self.way)
        return self._known[key]

    def stamp(self, images: Iterable[str]) -> str:
        """As :meth:`fcit.data.images.verdicts.ImageVerdicts.stamp`."""
        return ImageVerdicts(self.root, None).stamp(images)
