"""Qwen3-VL (arXiv 2511.21631): images at their own size, states of several layers of the tower side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from fcit import config as configuration
from fcit.models.families.base import VisionSizes
from fcit.models.families.qwen import Qwen, named, small_of
from fcit.models.families.small import TEXT, Small
from fcit.models.patches import Grid

FOUR_B = "Qwen/Qwen3-VL-4B-Instruct"


def qwen3_vl_4b() -> Any:
    """The sizes of Qwen3-VL-4B (Qwen/Qwen3-VL-4B-Instruct)."""
    return Qwen3VLConfig(
        vision_config={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
            },
        },
        tie_word_embeddings=True,
    )


class Qwen3(Qwen):
    """As Qwen2.5-VL, and images enter the language model at several depths (DeepStack, arXiv 2406.04334).

    After its first decoder layers, the words of images have the states of earlier layers of the tower added, each
    through a merger of its own. These mergers are frozen (our definition): only ``merger``, whose output are the words
    themselves, is trained as the projector. So what they return is kept beside the tower's last states: a row holds
    those before ``merger``, then one vector as wide as a word for each depth.
    """

    summary = "Qwen3-VL, images at their own size or scaled to squares of `backbone.image_size` pixels"
    example = FOUR_B
    published: ClassVar = {FOUR_B: qwen3_vl_4b}

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        sizes = super().sizes(config, settings)
        return replace(sizes, feature_width=sizes.feature_width + _deep(config.vision_config))

    @classmethod
    def small(cls) -> Small:
        """Two depths beside the last and a layer after them, interpolated positions, interleaved rotations."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            vision = {
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "patch_size": 8,
                "out_hidden_size": 48,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
                "initializer_range": 0.15,
            }
            rotary = {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            }
            text = {**TEXT, "num_hidden_layers": 3, "head_dim": 12, "rope_parameters": rotary}
            config = Qwen3VLConfig(
                vision_config=vision,
                text_config={**text, "vocab_size": vocabulary},
                **named(ids),
            )
            return AutoModelForImageTextToText.from_config(config)

        return small_of(make)

    @property
    def _width(self) -> int:
        return super()._width + _deep(self.base.config.vision_config)

    @staticmethod
    def _kept(output: Any) -> torch.Tensor:
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        return super().join(rows[..., : super()._width], grids)

    @contextmanager
    def beside(self, rows: torch.Tensor, pictured: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
        """The features of all depths, which the language model takes as arguments that the whole model sets itself."""
        if not len(rows):
            yield
            return
        deep = rows[..., super()._width :].reshape(int(pictured.sum()), -1, self.base.config.text_config.hidden_size)
        given = {"visual_pos_masks": pictured, "deepstack_visual_embeds": list(deep.unbind(1))}

        def add(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            whole = options["inputs_embeds"].shape[1] == pictured.shape[1]
            return (arguments, options | given) if whole else None  # else the words of answers, one by one

        hook = self.language.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _deep(vision: Any) -> int:
    """Numbers of a word's features of all depths."""
    return len(vision.deepstack_visual_indexes) * vision.out_hidden_size
