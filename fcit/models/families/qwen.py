"""Qwen2.5-VL (arXiv 2502.13923): images at their own size, or all scaled to one square."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from fcit import config as configuration
from fcit.errors import ConfigError, DataError
from fcit.models.families.base import AnySize, VisionSizes
from fcit.models.families.small import TEXT, Small
from fcit.models.patches import Grid

#: Special tokens by the beginning of their names in the configuration of a model.
_SPECIAL = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


class Qwen(AnySize):
    """Qwen2.5-VL with images at their own size, between the smallest and largest number of pixels.

    An image is scaled to the nearest multiples of a word's side (28 pixels) that keep within the bounds; its grid is
    rows and columns of words. With ``backbone.image_size`` (448: 256 tokens) every image is scaled to one square, and
    ``backbone.pad_to_square`` keeps the aspect ratio. Kept are the tower's states before ``merger``, the module that
    joins 2 x 2 patches into a word and is trained as the projector.
    """

    summary = "Qwen2.5-VL, images at their own size or scaled to squares of `backbone.image_size` pixels"
    example = "Qwen/Qwen2.5-VL-3B-Instruct"
    projector, vision, processed = "merger", "visual", False

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        self._unit = processor.patch_size * processor.merge_size  # side of a word in pixels
        bounds = processor.size
        self._bounds = (
            bounds["shortest_edge"] if settings.min_pixels is None else settings.min_pixels,
            bounds["longest_edge"] if settings.max_pixels is None else settings.max_pixels,
        )
        if self._bounds[0] > self._bounds[1]:
            raise ConfigError(
                f"backbone.min_pixels: {self._bounds[0]:,} is more than backbone.max_pixels, {self._bounds[1]:,}; "
                "lower the one or raise the other"
            )
        if self._bounds[1] < self._unit**2:
            raise ConfigError(
                f"backbone.max_pixels: {self._bounds[1]:,} is less than one word of this model, {self._unit**2:,}; "
                "raise it"
            )
        if not self.native and self._square % self._unit:
            nearest = max(1, round(self._square / self._unit)) * self._unit
            raise ConfigError(
                f"backbone.image_size: {self._square} is no multiple of this model's {self._unit} pixels; "
                f"choose e.g. {nearest}, or native"
            )

    @property
    def _square(self) -> int:
        """Side of the square that all images are scaled to."""
        size = self.settings.image_size
        assert size != "native"
        return size

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        merged = vision.spatial_merge_size**2
        unit = vision.patch_size * vision.spatial_merge_size
        if settings.image_size == "native":
            width, height = cls.typical
            least, most = settings.min_pixels or 1, settings.max_pixels or max(width * height, settings.min_pixels or 1)
            height, width = smart_resize(height, width, unit, least, most)
        else:
            width = height = settings.image_size
        words = (width // unit) * (height // unit)
        return VisionSizes(
            layers=vision.depth,
            width=vision.hidden_size,
            patches=words * merged,
            tokens=words,
            feature_width=vision.hidden_size * merged,
        )

    @classmethod
    def small(cls) -> Small:
        """Windowed and full blocks of the vision tower."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            vision = {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "patch_size": 8,
                "out_hidden_size": 48,
                "fullatt_block_indexes": [1],
                "window_size": 32,
                "initializer_range": 0.15,
            }
            text = {**TEXT, "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"]}
            rotary = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}
            config = Qwen2_5_VLConfig(
                vision_config=vision,
                text_config={**text, "rope_parameters": rotary},
                **named(ids),
                tie_word_embeddings=False,
            )
            return AutoModelForImageTextToText.from_config(config)

        return small_of(make)

    @property
    def tower(self) -> Any:
        return self.base.model.visual

    @property
    def view(self) -> str:
        return f"{super().view}native{self._bounds}" if self.native else f"{super().view}{self._square}"

    @property
    def tokens(self) -> int:
        return super().tokens if self.native else (self._square // self._unit) ** 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._width,) if self.native else (self.tokens, self._width)

    @property
    def _width(self) -> int:
        """Numbers that are kept of a word."""
        return self.base.config.vision_config.hidden_size * self.processor.merge_size**2

    # ------------------------------------------------------------------ images of any size

    def grid(self, width: int, height: int) -> Grid:
        """Rows and columns of words."""
        try:
            size = smart_resize(height, width, self._unit, *self._bounds)
        except ValueError as error:
            raise DataError(f"an image of {width} x {height} pixels: {error}") from None
        return tuple(side // self._unit for side in size)

    def count(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    kept = projected = count

    def rows(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self._states(pixels, torch.tensor([[1, *(side * self.processor.merge_size for side in grid)]]))

    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        merger = self.tower.merger
        patches = rows.reshape(-1, self.base.config.vision_config.hidden_size)
        return merger(self._as_parameters(merger, patches))

    # ------------------------------------------------------------------ squares

    def prepared(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        whole = super().prepared(images)
        if self.native:
            return whole
        return [image.resize((self._square, self._square), self.processor.resample) for image in whole]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """``(patches, width of a patch)``, with a dimension in front of it for a square."""
        [prepared] = self.prepared([image])
        if not self.native:
            return self.processor(prepared, do_resize=False, return_tensors="pt")["pixel_values"]
        bounds = dict(zip(("shortest_edge", "longest_edge"), self._bounds, strict=True))
        return self.processor(prepared, size=bounds, return_tensors="pt")["pixel_values"]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        side = self._square // self.processor.patch_size
        grid = torch.tensor([[1, side, side]]).expand(len(pixels), -1)
        return self._states(pixels.flatten(0, 1), grid).unflatten(0, (len(pixels), -1))

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return self.join(features, ()).unflatten(0, (len(features), -1))

    # ------------------------------------------------------------------ both

    @torch.no_grad()
    def _states(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """The tower's states of patches, those of a word side by side."""
        with _joined(self.tower) as tower:
            patches = pixels.to(tower.device, tower.dtype)
            return self._kept(tower(patches, grid_thw=grid.to(tower.device)))

    @staticmethod
    def _kept(output: Any) -> torch.Tensor:
        """What is kept of the tower's output, word by word."""
        return output.pooler_output

    def positions(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> torch.Tensor:
        """Three rows of positions ``(3, B, L)``: time, height, width (multimodal rotary embedding).

        Positions of words increase by one; all words of an image share one time, their height and width count from
        there, and the next word follows after the larger of the two.
        """
        if grids is None:
            side = 1 if self.native else self._square // self._unit
            grids = [(side, side)] * (int(pictured.sum()) // side**2)
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        if not grids:
            return place.expand(3, *place.shape)
        counts = torch.tensor([h * w for h, w in grids], device=mask.device)
        sides = torch.tensor(grids, device=mask.device)
        # Every placeholder's image, and its number among the image's words.
        owner = torch.arange(len(grids), device=mask.device).repeat_interleave(counts)
        inside = torch.arange(len(owner), device=mask.device) - (counts.cumsum(0) - counts)[owner]
        # An image takes as many positions as its longer side has words: what its words are more is taken away.
        saved = torch.zeros_like(place)
        last = inside == counts[owner] - 1
        saved[pictured] = torch.where(last, (counts - sides.amax(1))[owner], 0)
        text = place - (saved.cumsum(-1) - saved)  # of the words of images before
        first = text[pictured] - inside
        rows, columns = inside // sides[owner, 1], inside % sides[owner, 1]
        positions = text.repeat(3, 1, 1)
        positions[:, pictured] = torch.stack([first, first + rows, first + columns])
        return positions

    def generation(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> dict[str, torch.Tensor]:
        return {"position_ids": self.positions(mask, pictured, grids)}


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


def named(ids: Mapping[str, int]) -> dict[str, int]:
    """Special tokens by their names in the configuration of a model."""
    return {f"{name}_token_id": ids[token] for name, token in _SPECIAL.items()}


def small_of(make: Callable[[int, Mapping[str, int]], Any]) -> Small:
    """The small model of a family whose images Qwen's processor cuts into patches."""
    least, most = 2 * 16 * 16, 24 * 16 * 16

    def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        bounds = {"shortest_edge": least, "longest_edge": most}
        return dict(backbone.image_processor(list(images), size=bounds, return_tensors="pt"))

    return Small(
        make,
        special=tuple(_SPECIAL.values()),
        image="<|vision_start|><|image_pad|><|vision_end|>",
        processor=lambda: Qwen2VLImageProcessorPil(patch_size=8),
        inputs=inputs,
        types="mm_token_type_ids",
        options={"min_pixels": least, "max_pixels": most},
    )
