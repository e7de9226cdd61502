"""A LLaVA-1.5 in the layout of ``llava-hf/llava-1.5-7b-hf``, and a CLIP, both small and with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fcit import seeding
from fcit.data.prompts import VICUNA
from fcit.models.backbone import TINY
from fcit.models.quieting import quiet

PIXELS, PATCH = 28, 14
WORDS = (
    "What is the object in the image? Answer the question using a single word or phrase. "
    "Answer with the option's letter from the given choices directly. What is happening in the image? "
    "Generate a brief caption for the image. How many red cubes are left? "
    "yes no a cat two dogs on a hill 0 1 2 3 4 5 6 7 8 9"
)
BYTES = [f"<0x{value:02X}>" for value in range(256)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llama_tokenizer() -> LlamaTokenizer:
    """Byte-fallback BPE with Llama's ids: 0 <unk>, 1 <s>, 2 </s>, then bytes; <image> and <pad> come last."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    special = ["<unk>", "<s>", "</s>", *BYTES]
    bpe.train_from_iterator(
        [f"{VICUNA} USER: {WORDS} ASSISTANT:"] * 4,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokenizer = LlamaTokenizer(
        vocab=bpe.get_vocab(), merges=merges, legacy=False, pad_token="<pad>", add_bos_token=True, model_max_length=2048
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's, for small images."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, do_convert_rgb=True
    )


def llava_config(vocabulary: int, image: int, pad: int) -> LlavaConfig:
    """Every ratio of the real one that matters: CLIP tower, untied head, feature layer -2 without CLS."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.15,
        rms_norm_eps=1e-5,
        pad_token_id=pad,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=(PIXELS // PATCH) ** 2,
    )


def small_llava(folder: Path, seed: int = 0) -> tuple[str, str]:
    """Save both below ``folder``; returns the model's and the identity encoder's folder."""
    model, identity = folder / "small-llava", folder / "small-clip"
    tokenizer = llama_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    with seeding.torch_seeded(seed, "small-llava"):
        llava = LlavaForConditionalGeneration(llava_config(len(tokenizer), image, tokenizer.pad_token_id))
        for name, parameter in llava.named_parameters():  # answers must depend on the image
            if "multi_modal_projector" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        clip = CLIPModel(clip_config(TINY / "clip"))
    llava.generation_config.pad_token_id = tokenizer.pad_token_id
    with quiet():
        llava.save_pretrained(model)
        clip.save_pretrained(identity)
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(model)
    AutoTokenizer.from_pretrained(TINY / "clip").save_pretrained(identity)
    image_processor().save_pretrained(identity)
    return str(model), str(identity)


def clip_config(words: Path) -> CLIPConfig:
    """A CLIP that reads the words of fcit-tiny's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(words)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 16}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    return CLIPConfig(
        text_config={**text, **ids, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**small, "image_size": PIXELS, "patch_size": PATCH, "projection_dim": 16},
        projection_dim=16,
    )
