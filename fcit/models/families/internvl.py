"""InternVL3 and InternVL3.5 in the layout of transformers (``-hf``): tiles of 448 pixels (arXiv 2504.10479)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, GotOcr2ImageProcessorPil, InternVLConfig, Qwen2Config

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import VisionSizes
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.families.tiled import Tiled, at_most
from fcit.models.patches import Grid

ONE_B, TWO_B = "OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-2B-hf"


def _internvl3(**text: int) -> Any:
    """Of the sizes up to 2B: InternViT-300M, and a Qwen2.5 of these sizes."""
    return InternVLConfig(
        vision_config={"attention_bias": True},  # everything else is transformers' default for this model
        text_config=Qwen2Config(
            vocab_size=151674,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            **text,
        ).to_dict(),
        image_token_id=151667,
        tie_word_embeddings=False,
    )


def internvl_1b() -> Any:
    """The configuration of InternVL3-1B (OpenGVLab/InternVL3-1B-hf): Qwen2.5-0.5B with InternViT-300M."""
    return _internvl3(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14)


def internvl_2b() -> Any:
    """The configuration of InternVL3-2B (OpenGVLab/InternVL3-2B-hf): Qwen2.5-1.5B with InternViT-300M."""
    return _internvl3(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)


def _bounds(processor: Any, settings: configuration.Backbone) -> tuple[int, int]:
    """Least and most tiles of an image.

    Raises:
        ConfigError: ``backbone.min_pixels`` asks for more than ``backbone.max_pixels`` allows, or for less than a tile.
    """
    side = processor.size["height"]
    most = at_most(settings, side) or processor.max_patches
    least = processor.min_patches if settings.min_pixels is None else math.ceil(settings.min_pixels / side**2)
    if least > most:
        raise ConfigError(
            f"backbone.min_pixels: {least} tiles of {side} x {side} pixels are more than the largest number, {most} "
            "(backbone.max_pixels); lower the one or raise the other"
        )
    return least, most


def _words(config: Any) -> int:
    """Words of a tile: its patches after the pixel shuffle."""
    (height, width), (high, wide) = config.vision_config.image_size, config.vision_config.patch_size
    return int((height // high) * (width // wide) * config.downsample_ratio**2)


class InternVL(Tiled):
    """InternViT on the tiles of the canvas whose aspect ratio is nearest, then on the whole image as a thumbnail.

    An image of one tile has no thumbnail. ``backbone.max_pixels`` and ``min_pixels`` bound the tiles without it; by the
    processor's own bounds there are 1 to 12. Kept are the tower's states after the pixel shuffle, which has no weights.
    """

    summary = "InternVL3 and InternVL3.5 (`-hf`), images cut into tiles of 448 pixels"
    example = ONE_B
    projector, vision, processed = "multi_modal_projector", "vision_tower", False
    published: ClassVar = {ONE_B: internvl_1b, TWO_B: internvl_2b}

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        least, most = _bounds(processor, settings)
        # InternVL's own processor always cuts, whatever the file of the image processor says.
        self._cut = {"crop_to_patches": True, "min_patches": least, "max_patches": most}

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        side = vision.image_size[0]
        processor = GotOcr2ImageProcessorPil(size={"height": side, "width": side})
        family = cls(None, processor, settings)
        [tiles] = family.grid(*family.seen(*cls.typical))
        patches = (side // vision.patch_size[0]) ** 2
        return VisionSizes(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            patches=tiles * (patches + 1),
            tokens=tiles * _words(config),
            feature_width=round(vision.hidden_size / config.downsample_ratio**2),
        )

    @classmethod
    def small(cls) -> Small:
        """Tiles of 4 x 4 patches, which are four words; biases of the vision tower's queries."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            vision = {
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "attention_bias": True,
                "layer_scale_init_value": 1.0,
            }
            config = InternVLConfig(
                vision_config={**VISION, **vision},
                text_config={
                    "model_type": "qwen2",
                    "vocab_size": vocabulary,
                    "eos_token_id": ids["<|im_end|>"],
                    **TEXT,
                },
                image_token_id=ids["<IMG_CONTEXT>"],
                image_seq_length=4,
                tie_word_embeddings=False,
            )
            return AutoModelForImageTextToText.from_config(config)

        def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
            made = backbone.image_processor(list(images), crop_to_patches=True, max_patches=6, return_tensors="pt")
            return {"pixel_values": made["pixel_values"]}

        return Small(
            make,
            special=("<IMG_CONTEXT>", "<img>", "</img>"),
            image="<IMG_CONTEXT>\n",
            processor=lambda: GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}),
            inputs=inputs,
            options={"max_pixels": 6 * 32 * 32},
        )

    @property
    def tower(self) -> Any:
        return self.base.model.vision_tower

    @property
    def words(self) -> int:
        return _words(self.base.config)

    @property
    def shape(self) -> tuple[int, ...]:
        config = self.base.config
        return self.words, round(config.vision_config.hidden_size / config.downsample_ratio**2)

    @property
    def view(self) -> str:
        return f"{super().view}tiles {self._cut['min_patches']} to {self._cut['max_patches']}"

    def grid(self, width: int, height: int) -> Grid:
        """The number of tiles, thumbnail included."""
        return (self.processor.get_number_of_image_patches(height, width, self._cut),)

    def tiles(self, grid: Grid) -> int:
        return grid[0]

    def placeholders(self, grid: Grid, tag: str) -> str:
        return f"<img>{tag * self.count(grid)}</img>"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """``(tiles, 3, side, side)``."""
        return self.processor(self.prepared([image]), **self._cut, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def rows(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        config, tower = self.base.config, self.tower
        layer = config.vision_feature_layer
        output = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=layer != -1)
        states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        if config.vision_feature_select_strategy == "default":  # without CLS
            states = states[:, 1:]
        side = math.isqrt(states.shape[1])
        squares = states.unflatten(1, (side, side))
        return self.base.model.pixel_shuffle(squares, scale_factor=config.downsample_ratio).flatten(1, 2)
