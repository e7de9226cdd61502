"""The bodies of replies: completions, their parts in a stream, models."""

from __future__ import annotations

import json
from typing import Any

from fcit.export.assistant import Answer


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of question and answer, as the model saw and made them."""
    prompt, new = answer.prompt_tokens, answer.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _why(answer: Answer) -> str:
    return "stop" if answer.ended else "length"


def completion(head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """A whole answer; ``head`` holds id, time and model."""
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _why(answer)}
    whole = {"object": "chat.completion", "choices": [choice], "usage": usage(answer), "fcit": {"mix": answer.mix}}
    return head | whole


def part(head: dict[str, Any], **delta: str) -> dict[str, Any]:
    """A part of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return head | {"object": "chat.completion.chunk", "choices": [choice]}


def last(head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The part that ends a streamed answer, with the mix that gave it."""
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _why(answer)}
    return head | {"object": "chat.completion.chunk", "choices": [choice], "fcit": {"mix": answer.mix}}


def counted(head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The part with the usage, after the last one."""
    return head | {"object": "chat.completion.chunk", "choices": [], "usage": usage(answer)}


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


DONE = "data: [DONE]\n\n"


def model(name: str, created: int, **more: Any) -> dict[str, Any]:
    """A model of the list; ``more`` says what fcit knows of it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "fcit", "fcit": more}
