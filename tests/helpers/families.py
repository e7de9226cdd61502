"""Models of several families as on the hub, small and with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from fcit import seeding
from fcit.models.backbone import TINY, Backbone
from fcit.models.quieting import quiet

CHAT = ("<|im_start|>", "<|im_end|>")
#: One turn after the other between ``<|im_start|>`` and ``<|im_end|>``; IMAGE stands in the place of an image.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As SmolVLM writes it: no token begins the text, an answer follows after "Assistant:".
CAPITALISED = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Small:
    """How a small model of one family is made, and what transformers' own forward takes of images.

    Attributes:
        make: the model for a vocabulary and the ids of special tokens.
        special: tokens beyond those of the chat; the first is an image's placeholder.
        image: an image in the chat template.
        end: the token that ends an answer.
        inputs: of images: pixels and what belongs to them.
        processor: of images.
        whole: the processor of texts and images from a tokenizer, where it needs none of videos.
        targets: of adapters.
        options: of ``backbone``.
        apart: whether the template is a file of the processor, which the tokenizer does not read.
    """

    make: Callable[[int, Mapping[str, int]], Any]
    special: Sequence[str]
    image: str
    inputs: Callable[[Backbone, Sequence[Image.Image]], dict[str, torch.Tensor]]
    processor: Callable[[], Any]
    whole: Callable[[Any, Any, str], Any] | None = None
    end: str = "<|im_end|>"
    template: str = CHATML
    targets: str = r".*language_model.*\.(gate_proj|up_proj|down_proj)"
    options: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False


def save(folder: Path, name: str, small: Small, seed: int = 0) -> str:
    """Save a model below ``folder``; returns its folder."""
    target = folder / name
    tokenizer = AutoTokenizer.from_pretrained(TINY / "llava")
    special = [*CHAT, *small.special]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = None  # no token begins a text
    tokenizer.bos_token, tokenizer.eos_token = None, small.end
    tokenizer.chat_template = small.template.replace("IMAGE", small.image)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    with seeding.torch_seeded(seed, name), quiet():
        model = small.make(len(tokenizer), ids)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # position embeddings and biases begin with zeros, which would hide them
                    parameter.normal_(0, 0.1)
        model.generation_config.eos_token_id = ids[small.end]
        model.save_pretrained(target)
    processor = small.processor()
    template = tokenizer.chat_template
    if small.apart:
        tokenizer.chat_template = None
        (target / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer.save_pretrained(target)
    if small.whole is not None:
        processor = small.whole(processor, tokenizer, template)
    processor.save_pretrained(target)
    return str(target)


def _internvl(vocabulary: int, ids: Mapping[str, int]) -> Any:
    """Four words a tile, grouped heads, biases of the queries."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [32, 32],
        "patch_size": [8, 8],
        "attention_bias": True,
        "layer_scale_init_value": 1.0,
    }
    text = {"model_type": "qwen2", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def _internvl_inputs(backbone: Backbone, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    whole = backbone.image_processor(list(images), crop_to_patches=True, max_patches=6, return_tensors="pt")
    return {"pixel_values": whole["pixel_values"]}


CANVASES = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def _llava_next(vocabulary: int, ids: Mapping[str, int]) -> Any:
    """Sixteen words a tile, the last layer but one of a tower with CLS, grouped heads."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"model_type": "mistral", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=ids["<image>"], image_grid_pinpoints=CANVASES
    )
    return LlavaNextForConditionalGeneration(config)


def _llava_next_inputs(backbone: Backbone, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    whole = backbone.image_processor(list(images), do_pad=False)
    tiles = torch.cat([torch.from_numpy(tiles) for tiles in whole["pixel_values"]])
    return {"pixel_values": tiles, "image_sizes": torch.tensor(whole["image_sizes"])}


#: Up to nine tiles, where the words of four are the most.
WIDER = [[34 * high, 34 * wide] for high in range(1, 4) for wide in range(1, 4)]


def _onevision(vocabulary: int, ids: Mapping[str, int]) -> Any:
    """Sixteen words a tile, whose last two pixels no patch sees; the last layer of a tower without CLS."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 34,
        "patch_size": 8,
        "vision_use_head": False,
    }
    text = {"model_type": "qwen2", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=WIDER,
        vision_aspect_ratio="anyres_max_4",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _onevision_inputs(backbone: Backbone, images: Sequence[Image.Image]) -> dict[str, Any]:
    """As the chat template hands them over: the images of one conversation together."""
    whole = backbone.image_processor([list(images)], do_pad=False)
    tiles = torch.cat([torch.from_numpy(tiles) for tiles in whole["pixel_values"]])
    sizes = torch.tensor(whole["image_sizes"])
    return {"pixel_values": tiles, "image_sizes": sizes, "batch_num_images": torch.tensor(whole["batch_num_images"])}


def _tiled(config: Any, build: Any) -> Callable[[int, Mapping[str, int]], Any]:
    """Four words a tile of 4 x 4 patches, grouped heads."""

    def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
        vision = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.15,
        }
        text = {"model_type": "llama", "vocab_size": vocabulary, "eos_token_id": ids["<end_of_utterance>"], **TEXT}
        return build(config(vision_config=vision, text_config=text, image_token_id=ids["<image>"], scale_factor=2))

    return make


def _tiled_inputs(backbone: Backbone, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    return dict(backbone.image_processor(list(images), size={"longest_edge": 96}, return_tensors="pt"))


def _rows(processor: Any) -> Callable[[], Any]:
    return lambda: processor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32})


_TILED: dict[str, Any] = {
    "special": (
        *("<image>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"),
        *(f"<row_{row + 1}_col_{column + 1}>" for row in range(4) for column in range(4)),
    ),
    "image": "<image>",
    "inputs": _tiled_inputs,
    "end": "<end_of_utterance>",
    "template": CAPITALISED,
    "targets": r".*text_model.*\.(gate_proj|up_proj|down_proj)",
    "options": {"max_pixels": 9 * 32 * 32},
}


def _qwen3(vocabulary: int, ids: Mapping[str, int]) -> Any:
    """Two depths beside the last and a layer after them, interpolated positions of the tower, interleaved rotations."""
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
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    text = {**TEXT, "vocab_size": vocabulary, "num_hidden_layers": 3, "head_dim": 12, "rope_parameters": rotary}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )


def _qwen3_inputs(backbone: Backbone, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    bounds = {"shortest_edge": 2 * 16 * 16, "longest_edge": 24 * 16 * 16}
    return dict(backbone.image_processor(list(images), size=bounds, return_tensors="pt"))


SMALL = {
    "idefics3": Small(
        make=_tiled(Idefics3Config, Idefics3ForConditionalGeneration),
        processor=_rows(Idefics3ImageProcessorPil),
        whole=lambda images, words, template: Idefics3Processor(images, words, 4, template),
        **_TILED,
    ),
    "internvl": Small(
        make=_internvl,
        special=("<IMG_CONTEXT>", "<img>", "</img>"),
        image="<IMG_CONTEXT>\n",
        inputs=_internvl_inputs,
        processor=lambda: GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}),
        options={"max_pixels": 6 * 32 * 32},
    ),
    "llava_next": Small(
        make=_llava_next,
        special=("<image>",),
        image="<image>\n",
        inputs=_llava_next_inputs,
        processor=lambda: LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=CANVASES
        ),
        whole=lambda images, words, template: LlavaNextProcessor(
            images, words, 8, "default", template, num_additional_image_tokens=1
        ),
    ),
    "llava_onevision": Small(
        make=_onevision,
        special=("<image>", "<video>"),
        image="<image>\n",
        inputs=_onevision_inputs,
        processor=lambda: LlavaOnevisionImageProcessorPil(size={"height": 34, "width": 34}, image_grid_pinpoints=WIDER),
    ),
    "qwen3_vl": Small(
        make=_qwen3,
        special=("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        image="<|vision_start|><|image_pad|><|vision_end|>",
        inputs=_qwen3_inputs,
        processor=lambda: Qwen2VLImageProcessorPil(patch_size=8),
        options={"min_pixels": 2 * 16 * 16, "max_pixels": 24 * 16 * 16},
    ),
    "smolvlm": Small(
        make=_tiled(SmolVLMConfig, SmolVLMForConditionalGeneration),
        processor=_rows(SmolVLMImageProcessorPil),
        apart=True,
        **_TILED,
    ),
}
