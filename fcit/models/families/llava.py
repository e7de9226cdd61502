"""LLaVA: LLaVA-1.5 and models saved in the same layout (arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, LlamaConfig, LlavaConfig, LlavaProcessor

from fcit import config as configuration
from fcit.models.families.base import Family, VisionSizes
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.identity import clip_vision_large

SEVEN_B = "llava-hf/llava-1.5-7b-hf"
_CONVERT = (
    "python transformers/src/transformers/models/llava/convert_llava_weights_to_hf.py --text_model_id "
    "lmsys/vicuna-7b-v1.5 --vision_model_id openai/clip-vit-large-patch14-336 --old_state_dict_id {source} "
    "--output_hub_path YOU/llava-1.5-7b-hf"
)


def llava_7b() -> Any:
    """The configuration of LLaVA-1.5-7B (llava-hf/llava-1.5-7b-hf): Vicuna-7B with CLIP ViT-L/14 at 336 pixels."""
    return LlavaConfig(
        vision_config=clip_vision_large(),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
        image_token_index=32000,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def without_cls(config: Any) -> bool:
    """Whether the tower's first token, CLS, is left out of the features."""
    return bool(config.vision_feature_select_strategy == "default")


def _layers(config: Any) -> list[int]:
    """Hidden layers of the tower whose states are the features, side by side."""
    layer = config.vision_feature_layer
    return [layer] if isinstance(layer, int) else list(layer)


def state_width(config: Any) -> int:
    """Numbers of one token's features."""
    return config.vision_config.hidden_size * len(_layers(config))


@torch.no_grad()
def selected(config: Any, tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Features ``(B, tokens, width)`` of pixels ``(B, 3, H, W)``: the configured layers', with or without CLS."""
    states = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
    chosen = torch.cat([states[layer] for layer in _layers(config)], dim=-1)
    return chosen[:, 1 if without_cls(config) else 0 :]


class Llava(Family):
    """CLIP-like tower, hidden layer ``vision_feature_layer`` without CLS, two-layer projector."""

    summary = "LLaVA-1.5 and models saved in the same layout"
    example = SEVEN_B
    projector, vision = "multi_modal_projector", "vision_tower"
    published: ClassVar = {SEVEN_B: llava_7b}
    other_layouts: ClassVar = {
        "mm_projector": f"its names are those of the original LLaVA code: name the converted model, e.g. {SEVEN_B}"
    }

    @classmethod
    def problem(cls, name: str, raw: Mapping[str, Any]) -> str | None:
        if "mm_vision_tower" not in raw and raw.get("model_type") not in ("llava_llama", "llava_mpt", "llava_mistral"):
            return None
        return (
            f"{name!r} is in the layout of the original LLaVA code (mm_vision_tower in config.json), which "
            f"transformers does not read. Name the converted model instead (backbone.model: {SEVEN_B} for "
            "liuhaotian/llava-v1.5-7b), or convert your own with the script in transformers' source repository: "
            f"{_CONVERT.format(source=name)}"
        )

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return VisionSizes(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            patches=patches + 1,
            tokens=patches + (0 if without_cls(config) else 1),
            feature_width=state_width(config),
        )

    @classmethod
    def small(cls) -> Small:
        """A CLIP of three layers, of which the last is not used."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            config = LlavaConfig(
                vision_config={"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3},
                text_config={"model_type": "llama", "vocab_size": vocabulary, **TEXT},
                image_token_index=ids["<image>"],
                vision_feature_layer=-2,
                vision_feature_select_strategy="default",
                image_seq_length=16,
            )
            return AutoModelForImageTextToText.from_config(config)

        def whole(processor: Any, tokenizer: Any, template: str) -> Any:
            return LlavaProcessor(
                processor,
                tokenizer,
                patch_size=8,
                vision_feature_select_strategy="default",
                chat_template=template,
                num_additional_image_tokens=1,
            )

        return Small(
            make,
            special=("<image>",),
            image="<image>\n",
            processor=lambda: CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
            ),
            whole=whole,
        )

    @property
    def tower(self) -> Any:
        return self.base.model.vision_tower

    @cached_property
    def tokens(self) -> int:
        # Counted on what the processor makes, which decides it, not by the tower's nominal image size.
        blank = Image.new("RGB", (64, 64))
        height, width = self.processor(blank, return_tensors="pt")["pixel_values"].shape[-2:]
        patch = self.base.config.vision_config.patch_size
        return (height // patch) * (width // patch) + (0 if without_cls(self.base.config) else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, state_width(self.base.config)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return selected(self.base.config, self.tower, pixels)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        projector = self.base.model.multi_modal_projector
        return projector(self._as_parameters(projector, features))

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)
