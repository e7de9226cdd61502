"""Prediction files: JSON lines in the format of the official scripts, ours and other code bases'.

A line holds ``question_id``, ``prompt``, ``text``, ``answer_id``, ``model_id`` and ``metadata``. Everything
else (image, answer, mark, mix) is under ``metadata``; ``image`` is a text for one image, a list for several
and absent for none. Lines of older run folders, which have these keys side by side, are read as well. Of files
of other code bases only ``question_id`` and ``text`` are read, as the official scripts do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from fcit.data.formats.conversation import MAX_IMAGES
from fcit.data.formats.files import MAX_FILE
from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.io import bounded

MAX_TEXT = 200_000  # characters of a prompt or a prediction
_HUGE = 1e300  # beyond it, and NaN, is no number here
_ID = 22  # characters of an answer_id, as many as the official ones have
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,18})(?:\.\d{1,18})?(?:[eE][-+]?\d{1,3})?", re.ASCII)  # as JSON writes one


@dataclass(frozen=True)
class Prediction:
    """One answered test record; ``mix`` holds the weight of each subspace, in the order of :attr:`Run.subspaces`."""

    question_id: str
    images: tuple[str, ...]
    prompt: str
    text: str
    answer: str
    mark: float | None = None
    mix: list[float] | None = None
    answer_id: str = ""
    model_id: str = ""

    @property
    def image(self) -> str:
        """The first image; empty if there is none."""
        return self.images[0] if self.images else ""


def answer_id(*owner: int | str) -> str:
    """The id of an answer: a hash of its owner. The official scripts draw a random one, which no run could repeat."""
    return hashlib.sha256("/".join(map(str, owner)).encode()).hexdigest()[:_ID]


def to_line(prediction: Prediction) -> str:
    """A prediction as a line of JSON in the official format, without the line's end."""
    p = prediction
    metadata: dict[str, Any] = {"image": p.image if len(p.images) == 1 else p.images} if p.images else {}
    metadata["answer"] = p.answer
    if p.mark is not None:
        metadata["mark"] = p.mark
    if p.mix is not None:
        metadata["mix"] = p.mix
    return json.dumps(
        {
            "question_id": p.question_id,
            "prompt": p.prompt,
            "text": p.text,
            "answer_id": p.answer_id,
            "model_id": p.model_id,
            "metadata": metadata,
        }
    )


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {bounded.shown(value)}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{key!r} has {len(value):,} characters, more than {MAX_TEXT:,}")
    if not bounded.is_text(value):
        raise ValueError(f"{key!r} holds half a surrogate pair, which is no text: {value[:80]!r}")
    return value


def _images(more: dict[str, Any]) -> tuple[str, ...]:
    """The images of a line: a text, a list of texts, or none (in older files an empty text)."""
    value = more.get("image")
    if isinstance(value, list):
        if len(value) > MAX_IMAGES:
            raise ValueError(f"'image' names {len(value)} images, more than {MAX_IMAGES}")
        return tuple(_text({"image": name}, "image") for name in value)
    return (_text(more, "image"),) if value or not isinstance(value, str | None) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


def _id(row: dict[str, Any]) -> str:
    value = row["question_id"]
    return _text({"question_id": str(value) if _is_number(value) else value}, "question_id")


def _object(row: Any) -> dict[str, Any]:
    """A line's object, with an id and a text."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object, got {bounded.shown(row)}")
    missing = [repr(key) for key in ("question_id", "text") if key not in row]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; a line has question_id, prompt, text, answer_id, model_id")
    return row


def from_others(line: str) -> Prediction:
    """A prediction from a line of another code base: its ``question_id`` and ``text``.

    All else may be anything that Python's JSON reads (``metadata`` null or a list, NaN): the official scripts ignore
    it. A repeated key is refused: it is not clear which of the two texts counts.

    Raises:
        ValueError: the line is wrong, and why.
    """
    row = _object(bounded.parse_json(line, unique=True, constants=True))
    return Prediction(_id(row), (), "", _text(row, "text"), "")


def from_line(line: str) -> Prediction:
    """A prediction from a line of a run folder; numbers are fine as ids.

    Raises:
        ValueError: the line is wrong, and why.
    """
    row = bounded.parse_json(line, unique=True)
    problem = bounded.depth_problem(row)
    if problem:
        raise ValueError(problem)
    row = _object(row)
    more = row.get("metadata", row)  # older run folders have no metadata
    if not isinstance(more, dict):
        raise ValueError(f"'metadata' must be an object, got {bounded.shown(more)}")
    mark, mix = more.get("mark"), more.get("mix")
    if not (mark is None or _is_number(mark)):
        raise ValueError(f"'mark' must be a number, got {bounded.shown(mark)}")
    if not (mix is None or (isinstance(mix, list) and all(map(_is_number, mix)))):
        raise ValueError(f"'mix' must be a list of numbers, got {bounded.shown(mix)}")
    beside = {key: _text({key: "", **row}, key) for key in ("prompt", "answer_id", "model_id")}
    answer = _text({"answer": "", **more}, "answer")
    return Prediction(_id(row), _images(more), text=_text(row, "text"), answer=answer, mark=mark, mix=mix, **beside)


def read(path: Path, parse: Callable[[str], Prediction] = from_line) -> list[Prediction]:
    """All predictions of a file, one a line; lines may end as on any system, and a byte order mark may come first.

    Args:
        parse: makes a prediction of a line: :func:`from_line` for run folders, :func:`from_others` for all others.

    Raises:
        DataError: naming file and line.
    """
    try:
        text = bounded.read_text(path, MAX_FILE)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of predictions") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    text = text.removeprefix("\ufeff").rstrip()
    predictions = []
    # Not splitlines(): a text may hold U+2028 and the like as they are, but JSON escapes these two.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text) if text else (), start=1):
        try:
            predictions.append(parse(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    return predictions


def _same(question_id: str) -> Hashable:
    """The value by which an id is compared: numbers by their value, so that 1, 1.0 and "1" are one; "01" is a text."""
    return Decimal(question_id) if _NUMBER.fullmatch(question_id) else question_id


def paired(
    path: Path, predictions: Sequence[Prediction], questions: Sequence[TestRecord], in_turn: bool = False
) -> tuple[list[TestRecord], list[str]]:
    """The question of every prediction (a line of ``path``) by its ``question_id``, and what is unusual.

    As the official scripts do it: of questions with one id the last counts, and a prediction that comes
    twice counts twice; ids that are numbers are equal by value (1 and 1.0). Beyond them, "1" is 1, too, unless
    several questions would become one.

    Args:
        in_turn: of questions with one id each counts: predictions to it are to one after the other, in the test set's
            order.

    Raises:
        DataError: no predictions, or one to a question that is not in the test set, naming file and line.
    """
    if not predictions:
        raise DataError(f"{path}: holds no predictions")
    texts = {record.question_id for record in questions}
    values = Counter(_same(text) for text in texts)

    def key_of(text: str) -> Hashable:
        """The text itself where a question has it, or where its value is that of several: 1.1 and 1.10 are chapters."""
        value = _same(text)
        return text if text in texts and values[value] > 1 else value

    groups: dict[Hashable, list[TestRecord]] = {}
    for record in questions:
        key = key_of(record.question_id)
        groups[key] = [*groups.get(key, ()), record] if in_turn else [record]
    keys = [key_of(prediction.question_id) for prediction in predictions]
    for number, (prediction, key) in enumerate(zip(predictions, keys, strict=True), start=1):
        if key not in groups:
            raise DataError(
                f"{path}, line {number}: question_id {bounded.shown(prediction.question_id)} is not in the test "
                f"set ({len(questions)} questions, the first is {bounded.shown(questions[0].question_id)}); is it of "
                "this data set and split?"
            )
    turns, records = Counter[Hashable](), list[TestRecord]()
    for key in keys:
        records.append(groups[key][turns[key] % len(groups[key])])
        turns[key] += 1
    counted = sum(map(len, groups.values()))
    answered = sum(min(turns[key], len(group)) for key, group in groups.items())
    unusual = []
    if counted < len(questions):
        unusual.append(f"{len(questions) - counted} questions share their id with another; the last one counts")
    if answered < counted:
        unusual.append(f"{counted - answered} of {counted} questions have no prediction and are left out")
    if answered < len(predictions):
        unusual.append(f"{len(predictions) - answered} predictions are to questions answered before; each counts")
    blanks = sum(p.text != p.text.strip() for p in predictions)
    if blanks:
        unusual.append(
            f"{blanks} predictions begin or end with blanks, which are removed as the official generator does"
        )
    return records, unusual
