"""Right answers in a file of their own, matched to the questions: COCO captions, or TextVQA's annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fcit.data.formats.conversation import checked_text, text_of
from fcit.data.formats.files import Rows, read_text
from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.io import bounded


def captioned(path: Path, rows: Rows, records: Sequence[TestRecord], references: Path) -> list[TestRecord]:
    """The questions of ``path`` with the captions or answers of ``references``.

    TextVQA's annotations (``data``, a list of ``question_id`` and ``answers``) are matched by ``question_id``; anything
    else is read as COCO captions. A caption belongs to the question whose ``image_id`` it has. Questions without this
    key are identified by their ``question_id`` where the file has captions for all of these; otherwise captions count
    the questions 1..N, as the official script does.

    Raises:
        DataError: a question has no caption or answer, or the file is neither.
    """
    raw = _parsed(references)
    if isinstance(raw, dict) and isinstance(raw.get("data"), list):
        captions, what = _vqa_answers(raw["data"], references), "answer for question_id"
        ids = [_id(record.question_id) for record in records]
    else:
        captions, what = _coco_captions(raw, references), "caption for image_id"
        ids = _image_ids(path, rows, records, captions)
    for n, image in enumerate(ids):
        if image not in captions:
            raise DataError(f"{references}: no {what} {image} (record {n} of {path}; {len(records)} questions)")
    return [
        replace(record, answer=captions[image][0], references=tuple(captions[image]))
        for record, image in zip(records, ids, strict=True)
    ]


def _image_ids(path: Path, rows: Rows, records: Sequence[TestRecord], captions: dict[str, list[str]]) -> list[str]:
    """The ``image_id`` of every question."""
    named = [
        _id(row["image_id"]) if isinstance(row, dict) and row.get("image_id") is not None else None for row in rows.rows
    ]
    if all(name is not None for name in named):
        return [str(name) for name in named]
    if any(name is not None for name in named):
        first = named.index(None)
        raise DataError(rows.sentences({first: "has no image_id, and other questions have one"}, 1)[0])
    questions = [_id(record.question_id) for record in records]
    if len(set(questions)) == len(questions) and all(question in captions for question in questions):
        return questions
    return [str(n) for n in range(1, len(records) + 1)]


def _id(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are the same."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def _parsed(path: Path) -> Any:
    """The content of a file of references.

    Raises:
        DataError: the file cannot be read.
    """
    text = read_text(path, "caption")
    try:
        return bounded.parse_json(text, constants=True)
    except ValueError as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        raise DataError(f"{path}{line}: broken JSON ({getattr(error, 'msg', error)})") from None


def _vqa_answers(rows: list[Any], path: Path) -> dict[str, list[str]]:
    """The answers of each ``question_id``, several people's.

    Raises:
        DataError: a row has not both.
    """
    answers: dict[str, list[str]] = {}
    for n, row in enumerate(rows):
        given = row.get("answers") if isinstance(row, dict) else None
        if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
            raise DataError(f"{path}: row {n} of 'data' has no list of texts under 'answers'")
        try:
            question = _id(text_of(row, "question_id"))
            answers[question] = [checked_text(text, "answers") for text in given]
        except ValueError as error:
            raise DataError(f"{path}: row {n} of 'data': {error}") from None
    return answers


def _coco_captions(raw: Any, path: Path) -> dict[str, list[str]]:
    """The captions of each ``image_id``.

    Raises:
        DataError: it is not a COCO caption file.
    """
    captions: dict[str, list[str]] = {}
    try:
        for row in raw["annotations"]:
            caption = row["caption"] if isinstance(row["caption"], str) else bounded.shown(row["caption"])
            if not isinstance(row["image_id"], int | float | str):
                raise ValueError(f"image_id {bounded.shown(row['image_id'])} is no id")
            captions.setdefault(_id(row["image_id"]), []).append(checked_text(caption, "caption"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a COCO caption file ({bounded.shown(error)})") from None
    return captions
