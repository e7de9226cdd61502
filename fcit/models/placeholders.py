"""How many placeholders an image has in a prompt, and what stands in the place of its tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fcit.data.images.sizes import ImageSizes

if TYPE_CHECKING:
    from fcit.models.families.base import AnySize, Family


class Placeholders(Protocol):
    """Of the images of one root, by the names that :func:`fcit.data.collate.as_shown` gives them."""

    def count(self, image: str) -> int:
        """Placeholders of an image.

        Raises:
            DataError: they depend on its size, and it cannot be read.
        """

    def tag(self, placeholder: str) -> str:
        """An image in a chat template."""

    def text(self, image: str, placeholder: str) -> str:
        """What stands in the place of its tag."""

    def below(self, sizes: ImageSizes) -> Placeholders:
        """The same for images of these sizes."""


class Equal:
    """Every image has the same number."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def count(self, image: str) -> int:
        return self._family.tokens

    def tag(self, placeholder: str) -> str:
        return self._family.tag(placeholder)

    def text(self, image: str, placeholder: str) -> str:
        return self._family.spelt(placeholder)

    def below(self, sizes: ImageSizes) -> Placeholders:
        return self


class Sized:
    """An image has a number that follows from its size.

    Args:
        sizes: of the images; None: all are typical ones.
    """

    def __init__(self, family: AnySize, sizes: ImageSizes | None = None) -> None:
        self._family, self._sizes = family, sizes

    def _grid(self, image: str) -> tuple[int, ...]:
        return self._family.grid_of(image, self._sizes)

    def count(self, image: str) -> int:
        return self._family.count(self._grid(image))

    def tag(self, placeholder: str) -> str:
        return self._family.tag(placeholder)

    def text(self, image: str, placeholder: str) -> str:
        return self._family.placeholders(self._grid(image), placeholder)

    def below(self, sizes: ImageSizes) -> Placeholders:
        return Sized(self._family, sizes)


def placeholders_of(family: Family) -> Placeholders:
    """Those of a family, which may have no weights."""
    from fcit.models.families.base import AnySize  # torch takes seconds, and who judges records needs none

    return Sized(family) if isinstance(family, AnySize) and family.native else Equal(family)
