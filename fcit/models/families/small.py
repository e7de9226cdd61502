"""Small models with random weights of a family's real classes, on which ``fcit check family`` tries it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer

from fcit import seeding
from fcit.models.places import TINY
from fcit.models.quieting import quiet

_CHAT = ("<|im_start|>", "<|im_end|>")
#: One turn after the other between ``<|im_start|>`` and ``<|im_end|>``; IMAGE stands in the place of an image.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Sizes of a small language model; of the real ones it has grouped heads.
TEXT: Mapping[str, Any] = {
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
#: Sizes of a small vision tower: 4 x 4 patches of 8 pixels.
VISION: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def prepared(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What the model's image processor makes of images."""
    return dict(backbone.image_processor(list(images), return_tensors="pt"))


@dataclass(frozen=True)
class Small:
    """How a small model of one family is made, and what transformers' own forward takes of images.

    Attributes:
        make: the model for a vocabulary and the ids of special tokens.
        special: tokens beyond ``<|im_start|>`` and ``<|im_end|>``; the first is an image's placeholder.
        image: an image in the chat template.
        processor: that of images.
        whole: the processor of texts and images from that of images, a tokenizer and a template, where the family
            loads it.
        inputs: of a loaded :class:`fcit.models.backbone.Backbone` and images: what the whole model takes of them.
        types: the argument of the whole model that is 1 where placeholders are, if it has one.
        end: the token that ends an answer.
        template: of a conversation, with IMAGE where an image is.
        targets: of adapters.
        options: of ``backbone``.
        named: special tokens that the tokenizer has by name, e.g. ``image_token``.
        apart: whether the template is a file of the processor, which the tokenizer does not read.
    """

    make: Callable[[int, Mapping[str, int]], Any]
    special: Sequence[str]
    image: str
    processor: Callable[[], Any]
    whole: Callable[[Any, Any, str], Any] | None = None
    inputs: Callable[[Any, Sequence[Image.Image]], dict[str, torch.Tensor]] = prepared
    types: str = ""
    end: str = "<|im_end|>"
    template: str = CHATML
    targets: str = r".*language_model.*\.(gate_proj|up_proj|down_proj)"
    options: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


def save(target: Path, small: Small, seed: int = 0) -> str:
    """Save a model as on the hub in a folder; returns its name."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / "llava", extra_special_tokens=dict(small.named))
    special = [*_CHAT, *small.special]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = None  # no token begins a text
    tokenizer.bos_token, tokenizer.eos_token = None, small.end
    tokenizer.chat_template = small.template.replace("IMAGE", small.image)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    with seeding.torch_seeded(seed, "small-family"), quiet():
        model = small.make(len(tokenizer), ids)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # position embeddings and biases begin with zeros, which would hide them
                    parameter.normal_(0, 0.1)
        model.generation_config.eos_token_id = ids[small.end]
        model.generation_config.repetition_penalty = 1.5  # as Qwen ships one; greedy answers must not know it
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
