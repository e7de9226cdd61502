"""LLaVA's format: ``image`` and ``conversations`` of ``from`` and ``value``.

Test records have ``question_id``, ``image``, ``text`` and ``answer`` (or ``answer_bbox``); of a list of answers each is
right. A file is a JSON list or JSON Lines.
"""

from __future__ import annotations

from typing import Any

from fcit.data.formats.conversation import (
    IMAGE_TAG,
    Message,
    checked_text,
    images_of,
    images_per_turn,
    question_of,
    record_of,
    role_of,
    text_of,
    without_tags,
)
from fcit.data.records import Record, TestRecord
from fcit.io import bounded

#: Under which a file says what sort of question it asks: OCRBench's and CV-Bench's name, as MLLM-CL has them.
KINDS = ("answer_type", "task")
LARGEST_SIDE = 1e9  # pixels that a record may claim for a side of its image; beyond it, `size` is something else


def is_row(row: Any) -> bool:
    """Whether a row looks like one of this format."""
    if not isinstance(row, dict):
        return False
    turns = row.get("conversations")
    if isinstance(turns, list):
        return not turns or not isinstance(turns[0], dict) or "from" in turns[0]
    return "messages" not in row and ("text" in row or "question_id" in row)


def record(row: Any) -> Record:
    """The record of a row.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"'conversations' must be a list of turns with 'from' and 'value', got {bounded.shown(turns)}")
    messages = [Message(role_of(turn.get("from"), n), text_of(turn, "value")) for n, turn in enumerate(turns)]
    return record_of(images_of(row), messages)


def question(row: Any, number: int, captioned: bool = False) -> TestRecord:
    """The test record of a row; ``number`` is its position, ``captioned``: its answers are in another file.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    if isinstance(row, dict) and "conversations" in row and "text" not in row:
        return question_of(record(row), text_of(row, "question_id") if "question_id" in row else str(number))
    missing = [k for k in ("question_id", "text") if not isinstance(row, dict) or row.get(k) is None]
    if not captioned and isinstance(row, dict) and row.get("answer") is None and row.get("answer_bbox") is None:
        missing.append("answer")
    if missing:
        raise ValueError(
            f"{', '.join(repr(k) for k in missing)} missing; a test record has question_id, text (the instruction), "
            "answer and, unless it is text alone, image"
        )
    text, tags = without_tags(text_of(row, "text"))
    images = images_of(row)
    images_per_turn([tags], len(images))
    value = row.get("answer_bbox")
    if isinstance(value, list):
        box = checked_text(str(value), "answer_bbox")
    else:
        box = "" if value is None else text_of(row, "answer_bbox")
    given = [] if captioned or row.get("answer") is None else answers_of(row)
    answers = [text_of({"answer": answer}, "answer") for answer in given]
    answer = answers[0] if answers else "" if captioned else box
    references = tuple(answers) if len(answers) > 1 else ()
    kind = next((checked_text(row[key], key) for key in KINDS if isinstance(row.get(key), str)), "")
    size = _size(row.get("size"))
    return TestRecord(text_of(row, "question_id"), images, text, answer, references, box, size, kind)


def answers_of(row: dict[str, Any]) -> list[Any]:
    """The values under ``answer``: a list as it is, anything else as the only one.

    Raises:
        ValueError: the list is empty.
    """
    answer = row.get("answer")
    if answer == []:
        raise ValueError("'answer' is an empty list")
    return answer if isinstance(answer, list) else [answer]


def _size(value: Any) -> tuple[float, float] | None:
    """Width and height of the image; None where ``size`` is missing or means something else."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < LARGEST_SIDE for n in value):
        return None
    return float(value[0]), float(value[1])


def row_of(record: Record) -> dict[str, Any]:
    """The row of a record; :func:`record` reads it back unchanged."""
    turns: list[dict[str, str]] = [{"from": "system", "value": record.system}] if record.system else []
    for turn in record.turns:
        turns.append({"from": "human", "value": f"{IMAGE_TAG}\n" * turn.images + turn.question})
        turns.append({"from": "gpt", "value": turn.answer})
    if not record.images:
        return {"conversations": turns}
    return {"image": record.images[0] if len(record.images) == 1 else list(record.images), "conversations": turns}
