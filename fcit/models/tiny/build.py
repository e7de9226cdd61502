"""The empty ``fcit-tiny``: tokenizers, configurations and untrained modules.

Everything is an ordinary Hugging Face object, saved and loaded as any hub model.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from fcit.data.mini import canvas, corpus
from fcit.data.mini.skills import words

SPECIAL = ["<pad>", "<s>", "<unk>", "<image>", "</s>"]
PAD, BOS, UNK, IMAGE, EOS = range(5)
VOCABULARY = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Words stay whole, upper-case strings fall apart into letters, decimals stay one token.
_SPLIT = r"USER:| ?ASSISTANT:| ?[A-Z](?![a-z])| ?[A-Za-z][a-z]*| ?[0-9]+\.[0-9]+| ?[0-9]| ?\n| ?[^\sA-Za-z0-9]"


def _texts(count: int) -> list[str]:
    """Instructions and answers whose words the tokenizer must keep whole."""
    rng = np.random.default_rng(20260101)
    texts = ["USER: ASSISTANT:"]
    for _ in range(count):
        _, example = corpus.sample(rng)
        texts.append(f"{example.question} {example.answer}")
    for word in words.VOCABULARY:
        texts += [f"{word} {word}", word.capitalize()] * 400
    return texts


def train_tokenizer(count: int = 60_000) -> Tokenizer:
    """A byte-level BPE (any text round-trips) over the words of the mini world.

    Args:
        count: examples whose texts it is made from; the shipped one is made from 60,000.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=100,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(count), trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer, template: str, padding_side: str, length: int):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side=padding_side,
        model_max_length=length,
    )


def llava_processor(tokenizer: Tokenizer) -> LlavaProcessor:
    """Left-padding tokenizer and a processor for 64-pixel images."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=_wrap(tokenizer, "<s> $A", "left", 256),
        patch_size=canvas.CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def image_processor() -> CLIPImageProcessorPil:
    """64-pixel images, scaled to -1..1."""
    size = {"height": canvas.PIXELS, "width": canvas.PIXELS}
    return CLIPImageProcessorPil(
        do_resize=True,
        size=size,
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )


def identity_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Right-padding, with an end token that truncation keeps."""
    return _wrap(tokenizer, "<s> $A </s>", "right", 77)


def llava(vocabulary: int) -> LlavaForConditionalGeneration:
    """An untrained LLaVA: CLIP vision tower (16 patches), two-layer projector, six Llama layers."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=canvas.PIXELS,
        patch_size=canvas.CELL,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,  # about 1/sqrt(width); the default suits models 30 times wider
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=canvas.CELLS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = PAD
    model.generation_config.bos_token_id = BOS
    model.generation_config.eos_token_id = EOS
    return model


def clip(vocabulary: int) -> CLIPModel:
    """An untrained CLIP pair for identity tokens."""
    config = CLIPConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "projection_dim": 64,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": canvas.PIXELS,
            "patch_size": canvas.CELL,
            "projection_dim": 64,
        },
        projection_dim=64,
    )
    return CLIPModel(config)
