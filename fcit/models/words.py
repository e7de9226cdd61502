"""Checks that tokenizer and model fit: vocabulary, placeholder of images and the tokens that end an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.utils import cached_file

from fcit import config as configuration
from fcit.errors import ConfigError


def load_words(source: str, settings: configuration.Backbone, processed: bool, config: Any) -> tuple[Any, Any]:
    """The tokenizer, padding on the left, and the tokenizer or processor that holds the chat template.

    Args:
        processed: whether the model's processor can be loaded.
        config: the model's configuration.

    Raises:
        ConfigError: no end token; words the model has no embedding for; ``conversation: template`` without a chat
            template, or without a token for the image in the vocabulary.
    """
    key, name = "backbone.model", settings.model
    processor = (AutoProcessor if processed else AutoTokenizer).from_pretrained(source)
    tokenizer = processor.tokenizer if processed else processor
    if not processed and not tokenizer.chat_template:  # it may be a file of the processor that cannot be loaded
        tokenizer.chat_template = ProcessorMixin.get_processor_dict(source)[0].get("chat_template")
    tokenizer.padding_side = "left"
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{key}: the tokenizer of {name!r} has no end token, so no answer would ever end; name it in its "
            "tokenizer_config.json (eos_token)"
        )
    if tokenizer.pad_token_id is None:  # masked positions are never attended to
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    check_size(key, name, tokenizer, config.get_text_config().vocab_size)
    if settings.conversation == "template":
        if not processor.chat_template:
            raise ConfigError(f"backbone.conversation: 'template', but {name!r} has no chat template; choose vicuna_v1")
        if config.image_token_id not in _special(tokenizer):
            raise ConfigError(
                f"{key}: image_token_id {config.image_token_id} in config.json of {name!r} is no special token of its "
                "tokenizer, which must be another model's; let both come from one model"
            )
    return tokenizer, processor


def check_size(key: str, name: str, tokenizer: Any, rows: int) -> None:
    """Check that every token has an embedding.

    Raises:
        ConfigError: a tokenizer of more words than the model.
    """
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{key}: the tokenizer of {name!r} has {len(tokenizer)} tokens and the model knows {rows} (vocab_size in "
            "config.json), so they are of different models; let both come from one model"
        )


def _special(tokenizer: Any) -> set[int]:
    """Special tokens, which are left out when an answer is decoded."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def end_tokens(source: str, tokenizer: Any) -> list[int]:
    """All tokens that end an answer: the tokenizer's, which training appends, then those of the configurations.

    Only values written in config.json and generation_config.json count; the default of transformers (2 for Llama)
    may be an ordinary word of this vocabulary.

    Raises:
        ConfigError: one of them is no special token: an answer would be cut off in its middle.
    """
    raw = PreTrainedConfig.get_config_dict(source)[0]
    text = raw.get("text_config")
    written = {
        "config.json": raw.get("eos_token_id"),
        "text_config in config.json": text.get("eos_token_id") if isinstance(text, dict) else None,
        "generation_config.json": _generation(source).get("eos_token_id"),
    }
    ends, special = [tokenizer.eos_token_id], _special(tokenizer)
    for where, value in written.items():
        for token in value if isinstance(value, list) else [value]:
            if token is None or token in ends:
                continue
            if type(token) is not int or token not in special:
                known = tokenizer.convert_ids_to_tokens(token) if type(token) is int and token >= 0 else None
                raise ConfigError(
                    f"backbone.model: {where} of {source!r} lets token {token!r} end an answer, which is "
                    f"{f'the word {known!r}' if known is not None else 'no token'} of its tokenizer; write "
                    f"{ends[0]} there, the tokenizer's own end ({tokenizer.eos_token!r})"
                )
            ends.append(token)
    return ends


def _generation(source: str) -> dict[str, Any]:
    """The content of generation_config.json; empty without one."""
    try:
        file = cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    except OSError:  # the hub cannot be reached; transformers goes on as well
        return {}
    content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return content if isinstance(content, dict) else {}
