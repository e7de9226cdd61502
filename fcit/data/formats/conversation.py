"""From who said what to a record: the rules that all formats of conversations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fcit.data.records import Record, TestRecord, Turn
from fcit.data.texts import IMAGE_TAG, text_of, whole, without_tags
from fcit.io import bounded

MAX_IMAGES = 64  # of one record
#: What formats call those who speak.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Said:
    """One turn of a file: who speaks, the text with its image tags."""

    role: str
    text: str


def role_of(value: Any, number: int) -> str:
    """Who speaks, in one word for all formats.

    Raises:
        ValueError: nobody known.
    """
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise ValueError(f"turn {number} is said by {bounded.shown(value)}; known are {', '.join(ROLES)}")
    return role


def images_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The images a row names under ``image`` or ``images``: a text, a list of texts, or none.

    Raises:
        ValueError: anything else, or too many.
    """
    named = [row[key] for key in ("image", "images") if row.get(key) not in (None, "")]
    if not named:
        return ()
    if len(named) > 1 and named[0] != named[1]:
        raise ValueError("has both 'image' and 'images'; name its images under one of them")
    values = named[0] if isinstance(named[0], list) else [named[0]]
    if len(values) > MAX_IMAGES:
        raise ValueError(f"names {len(values)} images, more than {MAX_IMAGES}")
    return tuple(text_of({"image": value}, "image") for value in values)


def record_of(images: Sequence[str], said: Sequence[Said]) -> Record:
    """The record of a conversation.

    It may open with what the system says; then questions and answers follow in turn, the last word being an answer.
    Blanks at the ends of a question go; an answer is kept as it is.

    Raises:
        ValueError: it is not such a conversation, or its image tags do not fit its images.
    """
    system = ""
    if said and said[0].role == "system":
        system, said = whole(said[0].text, "system").strip(), said[1:]
        if IMAGE_TAG in system:
            raise ValueError("the system turn holds the image tag; an image belongs into a question")
    if len(said) < 2:
        raise ValueError("a conversation needs a question (human, user) and its answer (gpt, assistant)")
    for number, turn in enumerate(said):
        wanted = ("user", "assistant")[number % 2]
        if turn.role != wanted:
            raise ValueError(f"turn {number} of the conversation is by {turn.role!r}, where {wanted!r} is to speak")
    if len(said) % 2:
        raise ValueError("the last question has no answer")
    questions = [without_tags(whole(turn.text, "question")) for turn in said[::2]]
    answers = [_answer(turn.text) for turn in said[1::2]]
    placed = places([tags for _, tags in questions], len(images))
    turns = zip(questions, answers, placed, strict=True)
    return Record(tuple(images), tuple(Turn(text.strip(), answer, count) for (text, _), answer, count in turns), system)


def _answer(text: str) -> str:
    if not whole(text, "answer").strip():
        raise ValueError("the answer is empty")
    if IMAGE_TAG in text:
        raise ValueError(f"the answer {text[:80]!r} holds the image tag; an image belongs into a question")
    return text


def places(tags: list[int], images: int) -> list[int]:
    """How many images stand in front of each question.

    Raises:
        ValueError: the tags do not say.
    """
    if not sum(tags):
        return [images if number == 0 else 0 for number in range(len(tags))]  # nobody said where: in front
    if sum(tags) == images:
        return tags
    if images == 1 and sum(map(bool, tags)) == 1:
        return [min(count, 1) for count in tags]  # named twice in one turn: there once, as in the public trainer
    raise ValueError(f"{sum(tags)} image tags in its questions, and it names {images} images")


def question_of(record: Record, question_id: str) -> TestRecord:
    """A conversation of one turn as a question to be answered.

    Raises:
        ValueError: it has more turns: which of the answers would be scored?
    """
    if len(record.turns) > 1:
        raise ValueError(f"a test question has one question and its answer, and this has {len(record.turns)}")
    if record.system:
        raise ValueError("a test question has no system turn; put it into the question")
    turn = record.turns[0]
    return TestRecord(question_id, record.images, turn.question, turn.answer)
