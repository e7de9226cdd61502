"""From the messages of a conversation to a record: the rules that all formats share, and how a text is cleaned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fcit.data.records import Record, TestRecord, Turn
from fcit.io import bounded

IMAGE_TAG = "<image>"
MAX_TEXT = 20_000  # characters of an instruction or answer; what a model reads at once is far less
MAX_IMAGES = 64  # of one record
#: The roles by the names that formats give them.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Message:
    """One message of a conversation: the role that speaks, and the text with its image tags."""

    role: str
    text: str


# ---------------------------------------------------------------------- texts


def text_of(row: Any, key: str) -> str:
    """The text under a key; a number is written out.

    Raises:
        ValueError: it holds neither.
    """
    value = row.get(key) if isinstance(row, dict) else None
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size: some are too large for a float
    if whole or (isinstance(value, float) and math.isfinite(value)):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {bounded.shown(value)}")
    return checked_text(value, key)


def checked_text(text: str, key: str) -> str:
    """A text that can be tokenised and shown.

    Raises:
        ValueError: it is too long, or holds half a surrogate pair.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{key!r} has {len(text):,} characters, more than {MAX_TEXT:,}")
    if not bounded.is_text(text):
        raise ValueError(f"{key!r} holds half a surrogate pair, which is no text: {text[:80]!r}")
    return text


def without_tags(text: str) -> tuple[str, int]:
    """A question without image tags, and how many there were.

    Where there was one, blanks at both ends are removed too: the tag is moved to the front of the turn that holds it,
    as the public trainer moves it.

    Raises:
        ValueError: what is left makes a tag again.
    """
    count = text.count(IMAGE_TAG)
    if not count:
        return text, 0
    rest = text.replace(IMAGE_TAG, "").strip()
    if IMAGE_TAG in rest:
        raise ValueError(f"an image tag stands inside another: {text[:80]!r}")
    return rest, count


# ---------------------------------------------------------------------- rows


def role_of(value: Any, number: int) -> str:
    """The role of a message, by one name for all formats.

    Raises:
        ValueError: it is unknown.
    """
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise ValueError(f"turn {number} is said by {bounded.shown(value)}; known are {', '.join(ROLES)}")
    return role


def images_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The images a row names under ``image`` or ``images``: a text, a list of texts, or none.

    Raises:
        ValueError: anything else, too many, or a video.
    """
    if any(row.get(key) not in (None, "", []) for key in ("video", "videos")):
        raise ValueError("names a video, and only images are shown to a model; give its frames as images")
    named = [row[key] for key in ("image", "images") if row.get(key) not in (None, "", [])]
    if not named:
        return ()
    if len(named) > 1 and named[0] != named[1]:
        raise ValueError("has both 'image' and 'images'; name its images under one of them")
    values = named[0] if isinstance(named[0], list) else [named[0]]
    if len(values) > MAX_IMAGES:
        raise ValueError(f"names {len(values)} images, more than {MAX_IMAGES}")
    return tuple(text_of({"image": value}, "image") for value in values)


def record_of(images: Sequence[str], messages: Sequence[Message]) -> Record:
    """The record of a conversation.

    It may begin with a system message; then questions and answers alternate, and the last message is an answer.
    Blanks at the ends of a question are removed; an answer is kept as it is.

    Raises:
        ValueError: it is not such a conversation, or its image tags do not fit its images.
    """
    system = ""
    if messages and messages[0].role == "system":
        system, messages = checked_text(messages[0].text, "system").strip(), messages[1:]
        if IMAGE_TAG in system:
            raise ValueError("the system turn holds the image tag; an image belongs into a question")
    if len(messages) < 2:
        raise ValueError("a conversation needs a question (human, user) and its answer (gpt, assistant)")
    for number, message in enumerate(messages):
        wanted = ("user", "assistant")[number % 2]
        if message.role != wanted:
            raise ValueError(f"turn {number} of the conversation is by {message.role!r}, where {wanted!r} is to speak")
    if len(messages) % 2:
        raise ValueError("the last question has no answer")
    questions = [without_tags(checked_text(message.text, "question")) for message in messages[::2]]
    answers = [_answer(message.text) for message in messages[1::2]]
    counts = images_per_turn([tags for _, tags in questions], len(images))
    turns = zip(questions, answers, counts, strict=True)
    return Record(tuple(images), tuple(Turn(text.strip(), answer, count) for (text, _), answer, count in turns), system)


def _answer(text: str) -> str:
    if not checked_text(text, "answer").strip():
        raise ValueError("the answer is empty")
    if IMAGE_TAG in text:
        raise ValueError(f"the answer {text[:80]!r} holds the image tag; an image belongs into a question")
    return text


def images_per_turn(tags: list[int], images: int) -> list[int]:
    """How many images stand in front of each question, by the number of image tags in each.

    Raises:
        ValueError: the tags do not fit the number of images.
    """
    if not sum(tags):
        return [images if number == 0 else 0 for number in range(len(tags))]  # no tags: all images in front
    if sum(tags) == images:
        return tags
    if images == 1 and sum(map(bool, tags)) == 1:
        return [min(count, 1) for count in tags]  # several tags in one turn for one image: once, as the public trainer
    raise ValueError(f"{sum(tags)} image tags in its questions, and it names {images} images")


def question_of(record: Record, question_id: str) -> TestRecord:
    """A conversation of one turn as a test question.

    Raises:
        ValueError: it has several turns, of which it is not clear which one is scored, or a system message.
    """
    if len(record.turns) > 1:
        raise ValueError(f"a test question has one question and its answer, and this has {len(record.turns)}")
    if record.system:
        raise ValueError("a test question has no system turn; put it into the question")
    turn = record.turns[0]
    return TestRecord(question_id, record.images, turn.question, turn.answer)
