"""A Qwen2.5-VL as on the hub, small and with random weights."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from fcit import seeding
from fcit.models.backbone import TINY
from fcit.models.quieting import quiet

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(vocabulary: int, ids: dict[str, int]) -> Qwen2_5_VLConfig:
    """Windowed and full vision blocks, grouped heads, biases, multimodal rotary embedding."""
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "initializer_range": 0.15,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def small_qwen(folder: Path, seed: int = 0) -> str:
    """Save it below ``folder``; returns its folder."""
    target = folder / "small-qwen"
    tokenizer = AutoTokenizer.from_pretrained(TINY / "llava")
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = None  # Qwen has no token that begins a text
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = None, "<|im_end|>", CHAT_TEMPLATE
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    with seeding.torch_seeded(seed, "small-qwen"), quiet():
        model = Qwen2_5_VLForConditionalGeneration(config(len(tokenizer), ids))
        model.generation_config.eos_token_id = ids["<|im_end|>"]
        model.generation_config.repetition_penalty = 1.5  # Qwen ships one; greedy answers must not know it
        model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    Qwen2VLImageProcessorPil().save_pretrained(target)
    return str(target)
