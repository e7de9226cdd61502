"""Small models without a family of their own, for ``backbone.family: generic``: what fits, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    AriaConfig,
    AriaImageProcessorPil,
    AriaProcessor,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    DeepseekVLConfig,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    GotOcr2Config,
    GotOcr2ImageProcessorPil,
    GotOcr2Processor,
    Idefics2Config,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    JanusConfig,
    JanusImageProcessorPil,
    JanusProcessor,
    LlavaProcessor,
    Ovis2Config,
    Ovis2ImageProcessorPil,
    Ovis2Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    VipLlavaConfig,
)

from fcit.models.families.generic import pictured
from fcit.models.families.small import TEXT, VISION, Small

SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
SQUARE = {"height": 32, "width": 32}


def text(kind: str, vocabulary: int, ids: Mapping[str, int], **sizes: Any) -> dict[str, Any]:
    """The configuration of a language model."""
    return {"model_type": kind, "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT, **sizes}


def small(config: Any, special: tuple[str, ...], **options: Any) -> Small:
    """A model of the configuration that ``config`` makes of a vocabulary and the ids of special tokens."""
    options = {"image": special[0], "inputs": pictured, **options}
    return Small(lambda v, ids: AutoModelForImageTextToText.from_config(config(v, ids)), special, **options)


PLACE = "<image_placeholder>"
#: By ``model_type``.
FITTING = {
    "aria": small(
        lambda v, ids: AriaConfig(
            vision_config={"model_type": "idefics3_vision", **VISION, "image_size": 490, "patch_size": 70},
            text_config=text("aria_text", v, ids, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            image_token_index=ids["<|img|>"],
            projector_patch_to_query_dict={49: 8, 196: 12},
        ),
        ("<|img|>",),
        named={"image_token": "<|img|>"},
        processor=lambda: AriaImageProcessorPil(max_image_size=490, min_image_size=336),
        whole=lambda p, t, c: AriaProcessor(p, t, chat_template=c, size_conversion={490: 8, 980: 12}),
        targets=r".*language_model.*shared_experts\.(gate_proj|up_proj|down_proj)",
    ),
    "deepseek_vl": small(
        lambda v, ids: DeepseekVLConfig(
            vision_config=SIGLIP, text_config=text("llama", v, ids), image_token_id=ids[PLACE]
        ),
        (PLACE,),
        named={"image_token": PLACE},
        processor=lambda: DeepseekVLImageProcessorPil(size=SQUARE, min_size=8),
        whole=lambda p, t, c: DeepseekVLProcessor(p, t, chat_template=c, num_image_tokens=16),
    ),
    "got_ocr2": small(
        lambda v, ids: GotOcr2Config(
            vision_config={
                "hidden_size": 8,
                "output_channels": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 256,
                "patch_size": 4,
                "window_size": 8,
                "global_attn_indexes": [],
                "mlp_dim": 8,
                "initializer_range": 0.1,
            },
            text_config=text("qwen2", v, ids),
            image_token_index=ids["<imgpad>"],
        ),
        ("<imgpad>", "<img>", "</img>"),
        processor=lambda: GotOcr2ImageProcessorPil(size={"height": 256, "width": 256}),
        whole=lambda p, t, c: GotOcr2Processor(p, t, chat_template=c),
    ),
    "janus": small(
        lambda v, ids: JanusConfig(
            vision_config={**VISION, "projection_dim": 48, "num_image_tokens": 16, "initializer_range": 0.15},
            text_config=text("llama", v, ids),
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 16,
                "base_channels": 32,
                "latent_channels": 8,
                "projection_dim": 48,
                "image_token_embed_dim": 48,
                "channel_multiplier": [1, 1],
            },
            image_token_id=ids[PLACE],
        ),
        (PLACE, "<begin_of_image>", "<end_of_image>"),
        named={"image_token": PLACE, "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        processor=lambda: JanusImageProcessorPil(size=SQUARE, min_size=8),
        whole=lambda p, t, c: JanusProcessor(p, t, chat_template=c, num_image_tokens=16),
    ),
    "vipllava": small(
        lambda v, ids: VipLlavaConfig(
            vision_config={"model_type": "clip_vision_model", **VISION},
            text_config=text("llama", v, ids),
            image_token_index=ids["<image>"],
            image_seq_length=16,
            vision_feature_layer=[-1, -2],
        ),
        ("<image>",),
        processor=lambda: CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
        whole=lambda p, t, c: LlavaProcessor(p, t, 8, "full", c, "<image>", num_additional_image_tokens=0),
    ),
}
#: Models that do not fit, and the reason that is told.
UNFIT = {
    "idefics2": (
        small(
            lambda v, ids: Idefics2Config(
                vision_config=VISION,
                perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4},
                text_config=text("mistral", v, ids),
                image_token_id=ids["<image>"],
            ),
            ("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
            processor=lambda: Idefics2ImageProcessorPil(do_image_splitting=False),
            whole=lambda p, t, c: Idefics2Processor(p, t, image_seq_len=4, chat_template=c),
        ),
        "its processor does not say what it writes for an image",
    ),
    "ovis2": (
        small(
            lambda v, ids: Ovis2Config(
                vision_config={**VISION, "vocab_size": 64, "hidden_stride": 2},
                text_config=text("qwen2", v, ids),
                image_token_id=ids["<IMG_ATOM>"],
                visual_indicator_token_ids=[ids[f"<IMG_{n}>"] for n in ("START", "GRID", "COL", "ROW", "END")],
                vocab_size=v,
                hidden_size=48,
            ),
            ("<IMG_ATOM>", "<image>", *(f"<IMG_{n}>" for n in ("START", "GRID", "COL", "ROW", "END"))),
            image="<image>",
            processor=lambda: Ovis2ImageProcessorPil(size=SQUARE, max_patches=4),
            whole=lambda p, t, c: Ovis2Processor(p, t, chat_template=c, image_token="<image>", image_seq_length=4),
        ),
        "its own forward gives logits that differ by",
    ),
    "paligemma": (
        small(
            lambda v, ids: PaliGemmaConfig(
                vision_config={**SIGLIP, "projection_dim": 48},
                text_config=text("gemma", v + 1200, ids, head_dim=12),
                image_token_index=ids["<image>"],
                projection_dim=48,
                hidden_size=48,
            ),
            ("<image>", "<bos>"),
            named={"image_token": "<image>", "bos_token": "<bos>"},
            processor=lambda: SiglipImageProcessorPil(size=SQUARE, image_seq_length=16),
            whole=lambda p, t, c: _paligemma(p, t, c),
        ),
        "its processor changes the text around images",
    ),
}


def _paligemma(processor: Any, tokenizer: Any, template: str) -> Any:
    processor.image_seq_length, tokenizer.bos_token = 16, "<bos>"
    return PaliGemmaProcessor(processor, tokenizer, chat_template=template)
