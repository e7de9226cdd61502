"""LLaVA-NeXT (LLaVA-1.6): the whole image as one tile, then the tiles of a larger canvas, any resolution.

Liu et al., LLaVA-NeXT: Improved reasoning, OCR, and world knowledge, January 2024
(https://llava-vl.github.io/blog/2024-01-30-llava-next).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)
from transformers.image_processing_utils import select_best_resolution

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import VisionSizes
from fcit.models.families.llava import selected, state_width, without_cls
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.families.tiled import Tiled
from fcit.models.identity import clip_vision_large
from fcit.models.patches import Grid

SEVEN_B = "llava-hf/llava-v1.6-mistral-7b-hf"
#: Of an image that is one tile and nothing beside it.
WHOLE: Grid = (0, 0, 0, 0)


def llava_next_7b() -> Any:
    """The sizes of LLaVA-1.6-7B (llava-hf/llava-v1.6-mistral-7b-hf): Mistral-7B with CLIP ViT-L/14 at 336 pixels."""
    return LlavaNextConfig(
        vision_config=clip_vision_large(),
        text_config=MistralConfig(vocab_size=32064, max_position_embeddings=32768, sliding_window=None),
        image_token_index=32000,
    )


def _unpadded(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """Rows and columns of words that hold something of the image on a canvas of so many.

    As transformers' ``unpad_image``: an image of another aspect ratio than its canvas fills one side, and what is
    padded on both ends of the other is left out again.
    """
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return rows - 2 * padding, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return rows, columns - 2 * padding


class LlavaNext(Tiled):
    """An image scaled to one tile, then scaled into the canvas that shows most of it and cut into tiles.

    A grid holds rows and columns of tiles, then rows and columns of the words that are left of theirs without the
    padding. Every row of words ends in ``image_newline``, which stays frozen, as LLaVA's own code leaves it where the
    language model has LoRA (``initialize_vision_modules`` gives gradients back to the projector alone).
    ``backbone.min_pixels`` and ``max_pixels`` bound the canvases. Kept are the states of all tiles.
    """

    summary = "LLaVA-NeXT (LLaVA-1.6), the whole image and the tiles of a larger canvas"
    example = SEVEN_B
    projector, vision = "multi_modal_projector", "vision_tower"
    published: ClassVar = {SEVEN_B: llava_next_7b}
    #: Makes pixels, for sizes alone.
    image_processor: ClassVar[Any] = LlavaNextImageProcessorPil

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        vision = base.config.vision_config
        self._side: int = vision.image_size
        self._patches: int = vision.image_size // vision.patch_size  # along the side of a tile
        self._canvases = self._bounded([list(canvas) for canvas in base.config.image_grid_pinpoints])

    def _bounded(self, canvases: list[list[int]]) -> list[list[int]]:
        """The canvases, height and width in pixels, that the settings allow.

        Raises:
            ConfigError: there is none, or the image processor was made for others or for other tiles.
        """
        tile = self.processor.crop_size or self.processor.size
        side = tile.get("height") or tile.get("shortest_edge")
        if side != self._side or [list(canvas) for canvas in self.processor.image_grid_pinpoints] != canvases:
            raise ConfigError(
                f"backbone.model: the image processor of {self.settings.model!r} makes tiles of {side} pixels on "
                f"{len(self.processor.image_grid_pinpoints)} canvases, and config.json says {self._side} pixels and "
                f"{len(canvases)} canvases (image_grid_pinpoints), or not the same ones; correct "
                "preprocessor_config.json"
            )
        least, most = self.settings.min_pixels, self.settings.max_pixels
        pixels = [height * width for height, width in canvases]
        fitting = [
            canvas
            for canvas, size in zip(canvases, pixels, strict=True)
            if (least is None or size >= least) and (most is None or size <= most)
        ]
        if not fitting:
            raise ConfigError(
                f"backbone.min_pixels, backbone.max_pixels: {least}, {most}: none of this model's {len(canvases)} "
                f"canvases has so many; they have {min(pixels):,} to {max(pixels):,} pixels; set the bounds accordingly"
            )
        return fitting

    @classmethod
    def small(cls) -> Small:
        """Sixteen words a tile, the last layer but one of a tower with CLS."""
        canvases = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            text = {"model_type": "mistral", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
            config = LlavaNextConfig(
                vision_config={"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3},
                text_config=text,
                image_token_index=ids["<image>"],
                image_grid_pinpoints=canvases,
            )
            return AutoModelForImageTextToText.from_config(config)

        def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
            made = backbone.image_processor(list(images), do_pad=False)
            tiles = torch.cat([torch.from_numpy(tiles) for tiles in made["pixel_values"]])
            return {"pixel_values": tiles, "image_sizes": torch.tensor(made["image_sizes"])}

        return Small(
            make,
            special=("<image>",),
            image="<image>\n",
            processor=lambda: LlavaNextImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=canvases
            ),
            whole=lambda p, t, c: LlavaNextProcessor(p, t, 8, "default", c, num_additional_image_tokens=1),
            inputs=inputs,
        )

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        side = vision.image_size
        size = {"height": side, "width": side}
        processor = cls.image_processor(size=size, crop_size=size, image_grid_pinpoints=config.image_grid_pinpoints)
        family = cls(SimpleNamespace(config=config), processor, settings)
        tiles = family.tiles(family.grid(*family.seen(*cls.typical)))
        return VisionSizes(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            patches=tiles * (family.words + (1 if without_cls(config) else 0)),
            tokens=family.tokens,
            feature_width=state_width(config),
            words=tiles * family.words,
        )

    @classmethod
    def part(cls, tensor: str) -> str:
        return "newline between rows of an image" if tensor.endswith("image_newline") else super().part(tensor)

    @property
    def tower(self) -> Any:
        return self.base.model.vision_tower

    @property
    def words(self) -> int:
        return self._patches**2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words, state_width(self.base.config)

    @property
    def view(self) -> str:
        return f"{super().view}canvases {self._canvases}"

    # ------------------------------------------------------------------ how many

    def grid(self, width: int, height: int) -> Grid:
        canvas = select_best_resolution((height, width), self._canvases)
        rows, columns = (pixels // self._side for pixels in canvas)
        return rows, columns, *_unpadded(width, height, columns * self._patches, rows * self._patches)

    def tiles(self, grid: Grid) -> int:
        return grid[0] * grid[1] + 1

    def count(self, grid: Grid) -> int:
        if grid == WHOLE:
            return self.words + 1
        rows, columns = self.spread(grid)
        return self.words + rows * (columns + 1)

    def spread(self, grid: Grid) -> tuple[int, int]:
        """Rows and columns of words that a canvas becomes, without newlines."""
        return grid[2], grid[3]

    # ------------------------------------------------------------------ what they are

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """``(tiles, 3, side, side)``."""
        options = {"image_grid_pinpoints": self._canvases, "return_tensors": "pt"}
        return self.processor(self.prepared([image]), **options)["pixel_values"][0]

    def rows(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        config = self.base.config
        states = selected(config, self.tower, pixels)
        if states.shape[1] != self.words:
            raise ConfigError(
                f"backbone.model: vision_feature_select_strategy {config.vision_feature_select_strategy!r} in "
                f"config.json of {self.settings.model!r} leaves {states.shape[1]} states of a tile of {self.words} "
                "patches; it is 'default' for a tower with a CLS token and 'full' for one without"
            )
        return states

    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        projector = self.base.model.multi_modal_projector
        tiles = projector(self._as_parameters(projector, rows))
        newline = self.base.model.image_newline.to(tiles)
        words: list[torch.Tensor] = []
        for image, grid in zip(tiles.split([self.tiles(grid) for grid in grids]), grids, strict=True):
            words.append(image[0])
            if grid == WHOLE:
                words.append(newline[None])
                continue
            canvas = self._canvas(image[1:], grid)
            words.append(torch.cat([canvas, newline.expand(len(canvas), 1, -1)], dim=1).flatten(0, 1))
        return torch.cat(words)

    def _canvas(self, tiles: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Tiles ``(rows x columns, words, d)`` side by side without the padding: ``(rows, columns, d)`` of words."""
        rows, columns, high, wide = grid
        side = self._patches
        squares = tiles.reshape(rows, columns, side, side, -1).transpose(1, 2)
        canvas = squares.reshape(rows * side, columns * side, -1)
        top, left = (rows * side - high) // 2, (columns * side - wide) // 2
        return canvas[top : top + high, left : left + wide]
