"""LLaVA-OneVision (arXiv 2408.03326): an image alone as LLaVA-NeXT's with fewer words, one of several as one tile."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
)

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.llava_next import WHOLE, LlavaNext
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.features import square
from fcit.models.patches import Grid

HALF_B = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
SEVEN_B = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
#: A canvas whose sides are this much longer than those of the most words is scaled down (transformers' constant).
_LONGER = 1.1


def onevision_half_b() -> Any:
    """The sizes of LLaVA-OneVision-0.5B: Qwen2-0.5B with SigLIP-SO400M at 384 pixels."""
    text = Qwen2Config(
        vocab_size=152000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionConfig(text_config=text, tie_word_embeddings=True)


def onevision_7b() -> Any:
    """The sizes of LLaVA-OneVision-7B: Qwen2-7B with SigLIP-SO400M at 384 pixels."""
    text = Qwen2Config(
        vocab_size=152128,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    return LlavaOnevisionConfig(text_config=text)


class LlavaOnevision(LlavaNext):
    """SigLIP on an image's tiles as in LLaVA-NeXT; a canvas of too many words is scaled down bilinearly.

    How many are too many says ``vision_aspect_ratio`` of config.json (``anyres_max_9``: those of nine tiles). The
    words are scaled after the projector, so all tiles are kept. An image that is one of several of a conversation is
    padded to a square of the mean colour and becomes one tile (section C.1 of the paper, and as transformers' processor
    does it), so features are kept by image and by whether it was alone. Videos are not shown: their placeholder is
    refused in a text.
    """

    summary = "LLaVA-OneVision, tiles of an image alone, one tile of each of several"
    example = HALF_B
    processed = False
    published: ClassVar = {HALF_B: onevision_half_b, SEVEN_B: onevision_7b}
    image_processor: ClassVar[Any] = LlavaOnevisionImageProcessorPil

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        ratio = base.config.vision_aspect_ratio
        named = re.fullmatch(r"anyres_max_(\d+)", ratio)
        if named is None:
            raise ConfigError(
                f"backbone.model: vision_aspect_ratio {ratio!r} in config.json of {settings.model!r}; known is "
                "anyres_max_N, e.g. anyres_max_9, the most tiles whose words an image may have"
            )
        self._most = int(named[1])

    @classmethod
    def small(cls) -> Small:
        """Sixteen words a tile, whose last two pixels no patch sees; a tower without CLS, at most nine tiles."""
        canvases = [[34 * high, 34 * wide] for high in range(1, 4) for wide in range(1, 4)]

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            text = {"model_type": "qwen2", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
            tower = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION, "image_size": 34}
            config = LlavaOnevisionConfig(
                vision_config=tower,
                text_config=text,
                image_token_index=ids["<image>"],
                video_token_index=ids["<video>"],
                image_grid_pinpoints=canvases,
                vision_aspect_ratio="anyres_max_4",
            )
            return AutoModelForImageTextToText.from_config(config)

        def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
            """As the chat template hands them over: the images of one conversation together."""
            made = backbone.image_processor([list(images)], do_pad=False)
            tiles = torch.cat([torch.from_numpy(tiles) for tiles in made["pixel_values"]])
            counts = {name: torch.tensor(made[name]) for name in ("image_sizes", "batch_num_images")}
            return {"pixel_values": tiles, **counts}

        return Small(
            make,
            special=("<image>", "<video>"),
            image="<image>\n",
            processor=lambda: LlavaOnevisionImageProcessorPil(
                size={"height": 34, "width": 34}, image_grid_pinpoints=canvases
            ),
            inputs=inputs,
        )

    @cached_property
    def among(self) -> LlavaNext:
        return _OneOfSeveral(self.base, self.processor, self.settings)

    def spread(self, grid: Grid) -> tuple[int, int]:
        rows, columns = super().spread(grid)
        ratio = math.sqrt(rows * columns / (self._most * self.words))
        return (int(rows // ratio), int(columns // ratio)) if ratio > _LONGER else (rows, columns)

    def _canvas(self, tiles: torch.Tensor, grid: Grid) -> torch.Tensor:
        canvas, size = super()._canvas(tiles, grid), self.spread(grid)
        if size == canvas.shape[:2]:
            return canvas
        channels = canvas.permute(2, 0, 1)[None]
        return functional.interpolate(channels, size, mode="bilinear")[0].permute(1, 2, 0)


class _OneOfSeveral(LlavaOnevision):
    """The same as it sees an image beside others."""

    @property
    def among(self) -> LlavaNext:
        return self

    def grid(self, width: int, height: int) -> Grid:
        return WHOLE

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return super().pixels(square(image, self.processor.image_mean))[:1]
