"""The text a model reads for a conversation: pieces between images and answers, each tokenised by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fcit.data.formats.conversation import IMAGE_TAG
from fcit.data.records import OpenConversation, Record, TestRecord

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Piece:
    """A piece of a prompt and what follows it.

    Attributes:
        text: tokenised by itself.
        after_end: it follows an end token, which a tokenizer may see in how it begins.
        image: one image's placeholders follow.
        answer: an answer and its end token follow; None: none does.
    """

    text: str
    after_end: bool = False
    image: bool = False
    answer: str | None = None


def vicuna_v1(record: Record | TestRecord) -> Iterator[Piece]:
    """The conversation of LLaVA-1.5 as FCIT trains it.

    ``SYSTEM USER: <image>\\nquestion ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>``; a system turn of the
    record's own stands in the place of the usual sentence. What stands before and after an image is tokenised by
    itself, as LLaVA's code does it, so that Llama's tokenizer opens both parts with a "▁".
    """
    for number, (question, answer, images) in enumerate(turns_of(record)):
        opening = "" if number else f"{getattr(record, 'system', '') or VICUNA} "
        tags = f"{IMAGE_TAG}\n" * images
        *before, last = f"{opening}USER: {tags}{question} ASSISTANT:".split(IMAGE_TAG, images)
        for place, text in enumerate(before):
            yield Piece(text, after_end=number > 0 and place == 0, image=True)
        yield Piece(last, after_end=number > 0 and not before, answer=answer)


def turns_of(record: Record | TestRecord) -> list[tuple[str, str | None, int]]:
    """Question, answer (None: to be given) and the number of images in front, for every turn."""
    if isinstance(record, TestRecord):
        earlier = record.history if isinstance(record, OpenConversation) else ()
        rest = len(record.images) - sum(turn.images for turn in earlier)
        return [*((turn.question, turn.answer, turn.images) for turn in earlier), (record.instruction, None, rest)]
    return [(turn.question, turn.answer, turn.images) for turn in record.turns]


def templated(source: Any, record: Record | TestRecord, end: str) -> Iterator[Piece]:
    """The conversation of the model's own chat template, which its processor or tokenizer holds.

    An answer follows after a space where the template ends in none, and the end token follows the answer: a template
    that does not put one there (LLaVA's) gets one (our definition, as LLaVA's own code trains). The tags of images
    stay in the text.

    Raises:
        ValueError: the template renders a question differently once it has been answered, so that a conversation has
            no one text.
    """
    messages: list[dict[str, Any]] = []
    if getattr(record, "system", ""):
        messages.append({"role": "system", "content": [{"type": "text", "text": getattr(record, "system", "")}]})
    done = ""
    for number, (question, answer, images) in enumerate(turns_of(record)):
        content = [*[{"type": "image"}] * images, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        whole = _rendered(source, messages).rstrip(" ")
        if not whole.startswith(done):
            raise ValueError("the model's chat template changes what was said before; choose conversation: vicuna_v1")
        text = whole[len(done) :]
        if number:
            text = text.removeprefix(end)
        yield Piece(text, after_end=number > 0, answer=answer)
        if answer is not None:
            done = whole + gap(whole) + answer
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})


def _rendered(source: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return str(source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (
        TemplateError,
        TypeError,
    ) as error:  # what templates raise for a conversation that they do not support
        raise ValueError(f"the model's chat template refuses the conversation ({error})") from None


def gap(prompt: str) -> str:
    """The text between a templated prompt and its answer."""
    return "" if prompt[-1:].isspace() else " "


def suffix_text(instruction: str) -> str:
    """The last line of an instruction: the one that demands a form of answer, where there is one."""
    return next(reversed(instruction.strip().splitlines()), "").strip()


def identity_text(instruction: str) -> str:
    """The text that an identity token is computed from: the whole instruction with its format line, no answer.

    The reference code gets the same text by decoding the prompt and cutting it after the image tag
    and before "ASSISTANT".
    """
    return instruction.strip()
