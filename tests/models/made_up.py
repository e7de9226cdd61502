"""A family of models that nobody ships: everything a new one has to state, in one file, and a small model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
)

from fcit import config as configuration
from fcit import seeding
from fcit.models.families.base import Family, VisionSizes
from fcit.models.quieting import quiet
from tests.helpers.llava import small_llava


class MadeUpConfig(LlavaConfig):
    """A configuration with a ``model_type`` of its own."""

    model_type = "made_up"


class MadeUpModel(LlavaModel):
    """LLaVA's modules under other names."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.eye, self.bridge = self.vision_tower, self.multi_modal_projector
        del self.vision_tower, self.multi_modal_projector


class MadeUpForConditionalGeneration(LlavaForConditionalGeneration):
    """The same with an output layer."""

    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.model = MadeUpModel(config)
        self.post_init()


AutoConfig.register(MadeUpConfig.model_type, MadeUpConfig)
AutoModelForImageTextToText.register(MadeUpConfig, MadeUpForConditionalGeneration)


class MadeUp(Family):
    """The last states of the tower, CLS included."""

    summary = "a family of one test"
    example = "nobody/made-up"
    projector, vision = "bridge", "eye"

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        return VisionSizes(vision.num_hidden_layers, vision.hidden_size, tokens, tokens, vision.hidden_size)

    @property
    def tower(self) -> Any:
        return self.base.model.eye

    @property
    def tokens(self) -> int:
        return self.sizes(self.base.config, self.settings).tokens

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.base.config.vision_config.hidden_size

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixels.to(self.tower.device, self.tower.dtype)).last_hidden_state

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return self.base.model.bridge(self._as_parameters(self.base.model.bridge, features))

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)


def small_made_up(folder: Path) -> tuple[str, str]:
    """Save one below ``folder``, and a CLIP; returns the folders of both."""
    model, identity = small_llava(folder)
    config = LlavaConfig.from_pretrained(model).to_dict()
    with seeding.torch_seeded(0, "made-up"), quiet():
        MadeUpForConditionalGeneration(MadeUpConfig(**config)).save_pretrained(model)
    return model, identity
