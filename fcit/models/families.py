"""Kinds of multimodal models: how an image becomes frozen features, and features become words.

Everything else a run needs (attention, LoRA, cross-entropy, greedy decoding) is the same for all of them. A
family says:

* what its frozen vision tower and its trainable projector are called;
* which pixels the tower sees, and what of its output is kept (before the projector, which is trained);
* how many placeholder tokens an image has in a prompt, and which positions all tokens are at.

Supported: LLaVA (``llava``: LLaVA-1.5 and what is saved alike) and Qwen2.5-VL (``qwen2_5_vl``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.features import filled, processed, square


class Family(ABC):
    """One loaded model seen through what is particular to its kind.

    Args:
        base: the Hugging Face model, without or with adapters inside.
        processor: its image processor.
        settings: ``pad_to_square`` and ``image_size`` say which pixels are seen.
    """

    #: ``model_type`` in config.json.
    kind: ClassVar[str]
    #: Last names of the projector and of what is frozen with the vision tower.
    projector: ClassVar[str]
    vision: ClassVar[str]
    #: Whether its processor can be loaded; that of a model of videos needs torchvision, and its tokenizer suffices.
    processed: ClassVar[bool] = True

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        self.base, self.processor, self.settings = base, processor, settings

    @property
    @abstractmethod
    def tower(self) -> Any:
        """The frozen vision tower."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Placeholders of an image in a prompt."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's frozen features ``(tokens, ...)``."""

    @property
    def view(self) -> str:
        """Names how images are prepared beyond what their processor says; part of the name of kept features."""
        return "square" if self.settings.pad_to_square else ""

    def prepared(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Images as the processor is to see them."""
        if not self.settings.pad_to_square:
            return list(images)
        return [square(image, self.processor.image_mean) for image in images]

    def _one_by_one(self, images: Iterable[Image.Image]) -> Iterator[Image.Image]:
        """The same, of which one at a time is in memory: padded to a square it may be large."""
        return (prepared for image in images for prepared in self.prepared([image]))

    @abstractmethod
    def features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Frozen features ``(N, *shape)`` of at most ``BATCH`` images, in the tower's number format."""

    @abstractmethod
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features ``(N, *shape)`` through the projector: ``(N, tokens, width of words)``."""

    @abstractmethod
    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        """Position ids of left-padded rows.

        Args:
            mask: ``(B, L)``, 1 where there is a token.
            pictured: ``(B, L)`` bool, where the placeholders of the row's images are.
        """

    def generation(self, mask: torch.Tensor, pictured: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments ``generate`` needs beside embeddings and mask."""
        return {}

    @staticmethod
    def _as_parameters(module: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """Features in the number format of a module, which for a trained projector is float32."""
        return features.to(next(module.parameters()).dtype)


class Llava(Family):
    """CLIP-like tower, hidden layer ``vision_feature_layer`` without CLS, two-layer projector."""

    kind, projector, vision = "llava", "multi_modal_projector", "vision_tower"

    @property
    def tower(self) -> Any:
        return self.base.model.vision_tower

    @property
    def _selected(self) -> bool:
        """Whether CLS is left out."""
        return bool(self.base.config.vision_feature_select_strategy == "default")

    @cached_property
    def tokens(self) -> int:
        blank = Image.new("RGB", (64, 64))
        height, width = self.processor(blank, return_tensors="pt")["pixel_values"].shape[-2:]
        patch = self.base.config.vision_config.patch_size
        return (height // patch) * (width // patch) + (0 if self._selected else 1)

    @property
    def _layers(self) -> list[int]:
        layer = self.base.config.vision_feature_layer
        return [layer] if isinstance(layer, int) else list(layer)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.base.config.vision_config.hidden_size * len(self._layers)

    @torch.no_grad()
    def features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        rows = processed(self.processor, self._one_by_one(images))
        pixels, tower = filled(rows), self.tower
        states = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
        chosen = torch.cat([states[layer] for layer in self._layers], dim=-1)
        return chosen[: len(rows), 1 if self._selected else 0 :]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        projector = self.base.model.multi_modal_projector
        return projector(self._as_parameters(projector, features))

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)


class Qwen(Family):
    """Qwen2.5-VL with every image scaled to one square, so that all features have one shape.

    The model itself takes any size and aspect ratio; ``backbone.image_size`` (448: 256 tokens) fixes the size,
    and ``backbone.pad_to_square`` keeps the aspect ratio. Kept are the tower's states before ``merger``, the
    module that joins 2 x 2 patches into a word and is trained as the projector.
    """

    kind, projector, vision, processed = "qwen2_5_vl", "merger", "visual", False

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

    @torch.no_grad()
    def features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        small = list(self._one_by_one(images))
        found = self.processor(small, do_resize=False, return_tensors="pt")
        patches = filled(found["pixel_values"].unflatten(0, (len(small), -1)))
        grid = found["image_grid_thw"][:1].expand(len(patches), -1).to(self.tower.device)
        with _joined(self.tower) as tower:
            states = tower(patches.flatten(0, 1).to(tower.device, tower.dtype), grid_thw=grid).pooler_output
        return states.unflatten(0, (len(patches), -1))[: len(small)]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        merger, rows = self.tower.merger, len(features)
        patches = features.reshape(-1, self.base.config.vision_config.hidden_size)
        return merger(self._as_parameters(merger, patches)).unflatten(0, (rows, -1))

    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        """Three rows of positions ``(3, B, L)``: time, height, width (multimodal rotary embedding).

        Words count on by one; all words of an image share one time, their height and width count from there,
        and what follows goes on after the larger of the two.
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


#: By ``model_type``.
FAMILIES: dict[str, type[Family]] = {family.kind: family for family in (Llava, Qwen)}
