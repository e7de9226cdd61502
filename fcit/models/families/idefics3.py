"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): rows and columns of tiles, then the whole image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import VisionSizes
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.families.tiled import Tiled, at_most
from fcit.models.patches import Grid

SMALLEST = "HuggingFaceTB/SmolVLM-256M-Instruct"
EIGHT_B = "HuggingFaceM4/Idefics3-8B-Llama3"
#: Tiles along the longest edge of an image in the published processors.
_ALONG = 4


def smolvlm_256m() -> Any:
    """The sizes of SmolVLM-256M, whose model is an Idefics3: SmolLM2-135M with SigLIP-B/16 at 512 pixels."""
    return Idefics3Config(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
        },
        image_token_id=49190,
        scale_factor=4,
    )


def idefics3_8b() -> Any:
    """The sizes of Idefics3-8B: Llama-3.1-8B with SigLIP-SO400M/14 at 364 pixels."""
    return Idefics3Config(
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 364,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 128259,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
        image_token_id=128257,
    )


def _words(config: Any, side: int) -> int:
    """Words of a tile of ``side`` pixels: its patches after the pixel shuffle."""
    return (side // config.vision_config.patch_size) ** 2 // config.scale_factor**2


#: As SmolVLM writes it: no token begins the text, an answer follows after "Assistant:".
_CAPITALISED = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _small(config: Any, processor: Any, **options: Any) -> Small:
    """Tiles of 4 x 4 patches, which are four words."""

    def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
        end = ids["<end_of_utterance>"]
        made = config(
            vision_config={**VISION, "initializer_range": 0.15},
            text_config={"model_type": "llama", "vocab_size": vocabulary, "eos_token_id": end, **TEXT},
            image_token_id=ids["<image>"],
            scale_factor=2,
        )
        return AutoModelForImageTextToText.from_config(made)

    def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(backbone.image_processor(list(images), size={"longest_edge": 96}, return_tensors="pt"))

    rows = (f"<row_{row + 1}_col_{column + 1}>" for row in range(_ALONG) for column in range(_ALONG))
    return Small(
        make,
        special=("<image>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", *rows),
        image="<image>",
        processor=lambda: processor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32}),
        inputs=inputs,
        end="<end_of_utterance>",
        template=_CAPITALISED,
        targets=r".*text_model.*\.(gate_proj|up_proj|down_proj)",
        options={"max_pixels": 9 * 32 * 32},
        **options,
    )


class Idefics3(Tiled):
    """SigLIP on square tiles of an image scaled to one longest edge, then on the whole image scaled to a tile.

    Every image is scaled, a small one too, so ``backbone.max_pixels`` lowers the edge: to as many tiles as a square of
    so many pixels has along its side. An image of one tile is the whole image only. Kept are the states of all patches;
    the pixel shuffle is part of ``connector``, the projector.
    """

    summary = "Idefics3 and SmolVLM, images cut into rows and columns of tiles"
    example = SMALLEST
    projector, vision, language_name = "connector", "vision_model", "text_model"
    published: ClassVar = {SMALLEST: smolvlm_256m, EIGHT_B: idefics3_8b}

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        if settings.min_pixels is not None:
            raise ConfigError(
                f"backbone.min_pixels: {settings.min_pixels:,}, but this model scales every image to one longest edge; "
                "remove it (backbone.max_pixels lowers the edge)"
            )
        self._side: int = processor.max_image_size["longest_edge"]
        edge: int = processor.size["longest_edge"]
        if edge % self._side:
            raise ConfigError(
                f"backbone.model: the image processor of {settings.model!r} scales images to a longest edge of {edge} "
                f"pixels, which is no multiple of its tiles, {self._side} (size, max_image_size); correct "
                "preprocessor_config.json"
            )
        most = at_most(settings, self._side)
        if most is not None:
            edge = min(edge, self._side * math.isqrt(most))
        self._size = {"longest_edge": edge}

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        side = vision.image_size
        processor = Idefics3ImageProcessorPil(
            size={"longest_edge": _ALONG * side}, max_image_size={"longest_edge": side}
        )
        family = cls(None, processor, settings)
        tiles = family.tiles(family.grid(*family.seen(*cls.typical)))
        return VisionSizes(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            patches=tiles * (side // vision.patch_size) ** 2,
            tokens=tiles * _words(config, side),
            feature_width=vision.hidden_size * config.scale_factor**2,
        )

    @classmethod
    def small(cls) -> Small:
        return _small(Idefics3Config, Idefics3ImageProcessorPil, whole=lambda p, t, c: Idefics3Processor(p, t, 4, c))

    @property
    def tower(self) -> Any:
        return self.base.model.vision_model

    @property
    def words(self) -> int:
        return _words(self.base.config, self._side)

    @property
    def shape(self) -> tuple[int, ...]:
        vision = self.base.config.vision_config
        return (self._side // vision.patch_size) ** 2, vision.hidden_size

    @property
    def view(self) -> str:
        return f"{super().view}edge {self._size['longest_edge']}"

    def grid(self, width: int, height: int) -> Grid:
        """Rows and columns of tiles; none for an image that fits into one."""
        _, rows, columns = self.processor.get_number_of_image_patches(height, width, {"size": self._size})
        return rows, columns

    def tiles(self, grid: Grid) -> int:
        return grid[0] * grid[1] + 1

    def placeholders(self, grid: Grid, tag: str) -> str:
        return get_image_prompt_string(
            *grid,
            self.words,
            fake_token_around_image="<fake_token_around_image>",
            image_token=tag,
            global_image_token="<global-img>",
        )

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """``(tiles, 3, side, side)``."""
        return self.processor(self.prepared([image]), size=self._size, return_tensors="pt")["pixel_values"][0]

    @torch.no_grad()
    def rows(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        tower = self.tower
        return tower(pixels.to(tower.device, tower.dtype)).last_hidden_state


class SmolVLM(Idefics3):
    """SmolVLM2, the same model with a processor of videos."""

    summary = "SmolVLM2, images cut into rows and columns of tiles"
    example = "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    processed = False
    published: ClassVar = {}

    @classmethod
    def small(cls) -> Small:
        return _small(SmolVLMConfig, SmolVLMImageProcessorPil, apart=True)
