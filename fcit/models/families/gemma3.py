"""Gemma 3 (arXiv 2503.19786): every image a square of 256 words, which attend to each other in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
)

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import Family, VisionSizes
from fcit.models.families.small import TEXT, VISION, Small

FOUR_B = "google/gemma-3-4b-it"


def gemma3_4b() -> Any:
    """The sizes of Gemma 3 4B (google/gemma-3-4b-it): SigLIP-SO400M/14 at 896 pixels."""
    return Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 1024,
        },
    )


class Gemma3(Family):
    """SigLIP's last states, averaged over squares of patches, which is what is kept; the projector normalises them.

    The projector itself takes the states of all patches and averages them, so it gets every average as often as it
    averages over. Among the words of one image attention is in both directions, in layers with a sliding window within
    the window. An image is one square; pan and scan, which cuts further squares out of long images, is refused.
    """

    summary = "Gemma 3, every image one square of 256 words that attend to each other in both directions"
    example = FOUR_B
    projector, vision, whole = "multi_modal_projector", "vision_tower", True
    published: ClassVar = {FOUR_B: gemma3_4b}

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        if getattr(self.image_processor, "do_pan_and_scan", False):
            raise ConfigError(
                f"backbone.model: the image processor of {settings.model!r} cuts further squares out of long images "
                "(do_pan_and_scan), which fcit does not; write false there, in preprocessor_config.json"
            )

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        return VisionSizes(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            patches=(vision.image_size // vision.patch_size) ** 2,
            tokens=config.mm_tokens_per_image,
            feature_width=vision.hidden_size,
        )

    @classmethod
    def small(cls) -> Small:
        """Four words of four patches each; a layer with a window that is shorter than a question, one without."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            text = {**TEXT, "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], "head_dim": 12}
            layers = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
            config = Gemma3Config(
                vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
                text_config={**text, **layers, "query_pre_attn_scalar": 12},
                image_token_index=ids["<image_soft_token>"],
                boi_token_index=ids["<start_of_image>"],
                eoi_token_index=ids["<end_of_image>"],
                mm_tokens_per_image=4,
            )
            return AutoModelForImageTextToText.from_config(config)

        def inputs(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
            return {"pixel_values": backbone.image_processor(list(images), return_tensors="pt")["pixel_values"]}

        names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
        return Small(
            make,
            special=tuple(names.values()),
            image="<start_of_image>",
            processor=lambda: Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
            whole=lambda p, t, c: Gemma3Processor(p, t, c, image_seq_length=4),
            inputs=inputs,
            types="token_type_ids",
            named=names,
        )

    # ------------------------------------------------------------------ vision

    @property
    def tower(self) -> Any:
        return self.base.model.vision_tower

    @property
    def tokens(self) -> int:
        tokens: int = self.base.config.mm_tokens_per_image
        return tokens

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.base.config.vision_config.hidden_size

    @property
    def _sides(self) -> tuple[int, int]:
        """Patches along the side of an image, and along that of the square that becomes a word."""
        vision = self.base.config.vision_config
        side = vision.image_size // vision.patch_size
        return side, side // int(self.tokens**0.5)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        tower, (side, square) = self.tower, self._sides
        states = tower(pixels.to(tower.device, tower.dtype)).last_hidden_state
        grid = states.transpose(1, 2).unflatten(2, (side, side))
        return torch.nn.functional.avg_pool2d(grid, square).flatten(2).transpose(1, 2)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        projector, (side, square) = self.base.model.multi_modal_projector, self._sides
        grid = self._as_parameters(projector, features).unflatten(1, (side // square, side // square))
        patches = grid.repeat_interleave(square, 1).repeat_interleave(square, 2)
        words: torch.Tensor = projector(patches.flatten(1, 2))
        return words

    # ------------------------------------------------------------------ language

    def tag(self, placeholder: str) -> str:
        tag: str = self.processor.boi_token
        return tag

    def spelt(self, placeholder: str) -> str:
        text: str = self.processor.full_image_sequence
        return text

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)

    @contextmanager
    def beside(self, rows: torch.Tensor, pictured: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
        """Masks with both directions among the words of an image, as the whole model makes them of token types."""
        if not len(rows):
            yield
            return
        types = pictured.long()

        def see(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            embeds, cache = options["inputs_embeds"], options.get("cache", options.get("past_key_values"))
            if embeds.shape[1] != pictured.shape[1]:
                return None  # the words of answers, one by one
            given = self.base.config, embeds, mask, cache, options.get("position_ids")
            masks = self.base.create_masks_for_generate(*given, token_type_ids=types)
            return arguments, options | {"attention_mask": masks}

        hook = self.language.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
