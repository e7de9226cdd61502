"""Qwen2.5-VL with images of one size (arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import Family, VisionSizes


class Qwen(Family):
    """Qwen2.5-VL with every image scaled to one square, so that all features have one shape.

    The model itself takes any size and aspect ratio; ``backbone.image_size`` (448: 256 tokens) fixes the size,
    and ``backbone.pad_to_square`` keeps the aspect ratio. Kept are the tower's states before ``merger``, the
    module that joins 2 x 2 patches into a word and is trained as the projector.
    """

    summary = "Qwen2.5-VL, every image scaled to a square of `backbone.image_size` pixels"
    example = "Qwen/Qwen2.5-VL-3B-Instruct"
    projector, vision, processed = "merger", "visual", False

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        unit = processor.patch_size * processor.merge_size
        if settings.image_size % unit:
            nearest = max(1, round(settings.image_size / unit)) * unit
            raise ConfigError(
                f"backbone.image_size: {settings.image_size} is no multiple of this model's {unit} pixels; "
                f"choose e.g. {nearest}"
            )
        self._side = settings.image_size // unit  # words in a row of the image

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        patches, merged = (settings.image_size // vision.patch_size) ** 2, vision.spatial_merge_size**2
        return VisionSizes(
            layers=vision.depth,
            width=vision.hidden_size,
            patches=patches,
            tokens=patches // merged,
            feature_width=vision.hidden_size * merged,
        )

    @property
    def tower(self) -> Any:
        return self.base.model.visual

    @property
    def view(self) -> str:
        return f"{super().view}{self.settings.image_size}"

    @property
    def tokens(self) -> int:
        return self._side**2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.base.config.vision_config.hidden_size * self.processor.merge_size**2

    def prepared(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        size = (self.settings.image_size, self.settings.image_size)
        return [image.resize(size, self.processor.resample) for image in super().prepared(images)]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor(self.prepared([image]), do_resize=False, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        side = self.settings.image_size // self.processor.patch_size
        grid = torch.tensor([[1, side, side]], device=self.tower.device).expand(len(pixels), -1)
        with _joined(self.tower) as tower:
            states = tower(pixels.flatten(0, 1).to(tower.device, tower.dtype), grid_thw=grid).pooler_output
        return states.unflatten(0, (len(pixels), -1))

    def project(self, features: torch.Tensor) -> torch.Tensor:
        merger, rows = self.tower.merger, len(features)
        patches = features.reshape(-1, self.base.config.vision_config.hidden_size)
        return merger(self._as_parameters(merger, patches)).unflatten(0, (rows, -1))

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        """Three rows of positions ``(3, B, L)``: time, height, width (multimodal rotary embedding).

        Positions of words increase by one; all words of an image share one time, their height and width count from
        there, and the next word follows after the larger of the two.
        """
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        before = pictured.cumsum(-1) - pictured.long()  # words of images before each place
        inside = before % self.tokens
        # An image takes as many positions as its side is long.
        text = place - before // self.tokens * (self.tokens - self._side)
        first = text - inside
        image = torch.stack([first, first + inside // self._side, first + inside % self._side])
        return torch.where(pictured, image, text)

    def generation(self, mask: torch.Tensor, pictured: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"position_ids": self.positions(mask, pictured)}


class _Join(nn.Module):
    """In the place of ``merger``: the patches of a word side by side, untouched."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.reshape(-1, self.patches * states.shape[-1])


@contextmanager
def _joined(tower: Any) -> Iterator[Any]:
    """The tower without its merger, so that it returns what goes into it, in the order of the image.

    Inside, the tower works window by window in another order, which it undoes only after the merger.
    """
    merger = tower.merger
    tower.merger = _Join(tower.spatial_merge_unit)
    try:
        yield tower
    finally:
        tower.merger = merger
