"""How an instruction becomes the text a model reads."""

from __future__ import annotations

from typing import Any

_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna_v1(instruction: str) -> str:
    """The conversation of LLaVA-1.5 as FCIT trains it, system sentence included."""
    return f"{_VICUNA} USER: <image>\n{instruction} ASSISTANT:"


def templated(source: Any, instruction: str) -> str:
    """The conversation of the model's own chat template, which its processor or tokenizer holds."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
    return str(source.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)).rstrip(" ")


def identity_text(instruction: str) -> str:
    """What an identity token is made of: the whole instruction with its format line, no answer.

    The reference code gets the same text by decoding the prompt and cutting it after the image tag
    and before "ASSISTANT".
    """
    return instruction.strip()
