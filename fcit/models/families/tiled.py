"""Families that cut an image into square tiles, which pass through the tower one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import AnySize
from fcit.models.patches import Grid


class Tiled(AnySize):
    """Images as tiles of one size; how many, and which whole image beside them, follows from width and height.

    A row of an image's frozen features is one tile, of which the projector makes :attr:`words` words. Positions are
    those of plain text.
    """

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        if not self.native:
            raise ConfigError(
                f"backbone.image_size: {settings.image_size}, but a model of this family cuts images into tiles of its "
                "own; set native, and bound their number with backbone.max_pixels"
            )

    @property
    @abstractmethod
    def words(self) -> int:
        """Placeholders of a tile."""

    @abstractmethod
    def tiles(self, grid: Grid) -> int:
        """Tiles of an image, the whole image beside them included."""

    def count(self, grid: Grid) -> int:
        return self.words * self.tiles(grid)

    def kept(self, grid: Grid) -> int:
        return self.tiles(grid)

    def projected(self, grid: Grid) -> int:
        return self.tiles(grid)

    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        projector = getattr(self.base.model, self.projector)
        return projector(self._as_parameters(projector, rows)).flatten(0, 1)

    def positions(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)


def at_most(settings: configuration.Backbone, side: int) -> int | None:
    """Tiles of ``side`` pixels that ``backbone.max_pixels`` has room for; None: it is not set.

    Raises:
        ConfigError: there is no room for one.
    """
    if settings.max_pixels is None:
        return None
    if settings.max_pixels < side**2:
        raise ConfigError(
            f"backbone.max_pixels: {settings.max_pixels:,} is less than one tile of this model, {side**2:,}; raise it"
        )
    return settings.max_pixels // side**2
