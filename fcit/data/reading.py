"""Reads instruction files and COCO caption references; trusts none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcit.data import formats
from fcit.data.formats import Form, Rows, read_rows, read_text
from fcit.data.records import Record, TestRecord
from fcit.data.texts import whole
from fcit.errors import DataError
from fcit.io import bounded

#: Raised whenever a file is read differently: what was kept of it is made anew.
VERSION = 2


@dataclass(frozen=True)
class Survey:
    """A training file as it is: a record, or None where one cannot be used, and why by its index."""

    path: Path
    format: str
    records: list[Record | None]
    problems: dict[int, str]
    rows: Rows

    def sentences(self, most: int, problems: dict[int, str] | None = None) -> list[str]:
        """The first problems (default: the records' own), each with file, line and record."""
        return self.rows.sentences(self.problems if problems is None else problems, most)


def _parse(
    path: Path, form: str | Form | None, make: Callable[[Any, Any, int], Any]
) -> tuple[Rows, str, list[Any], dict]:
    """Rows of a file, their format, what ``make`` makes of each (None where it cannot), and why not."""
    form = Form.of(form)
    rows = read_rows(path, form)
    name = rows.format or form.name or formats.guess(rows.rows)
    module = formats.module(name)
    made: list[Any] = []
    problems: dict[int, str] = {}
    for index, row in enumerate(rows.rows):
        try:
            deep = bounded.depth_problem(row)
            if deep:
                raise ValueError(deep)
            made.append(make(module, row, index))
        except ValueError as error:
            made.append(None)
            problems[index] = str(error)
    return rows, name, made, problems


def survey_train(path: Path, form: str | Form | None = None) -> Survey:
    """Read a training file or a client's file (may be empty), usable or not.

    Args:
        form: its format, or how it is read; None: guessed.

    Raises:
        DataError: the file as a whole cannot be used, naming file and line.
    """
    rows, name, made, problems = _parse(path, form, lambda module, row, index: module.record(row))
    return Survey(path, name, made, problems, rows)


def read_train(path: Path, form: str | Form | None = None) -> list[Record]:
    """Read a training file or a client's file (may be empty), all of it.

    Raises:
        DataError: naming file, line and record.
    """
    survey = survey_train(path, form)
    if survey.problems:
        raise DataError(survey.sentences(1)[0])
    return [record for record in survey.records if record is not None]


def read_test(path: Path, references: Path | None = None, form: str | Form | None = None) -> list[TestRecord]:
    """Read a test file; ``references`` is a COCO caption file.

    Captions belong to the question whose ``image_id`` they have. Questions without this key are known by their
    ``question_id`` where captions have all of these; else captions count the questions 1..N, as the official script
    does it.

    Raises:
        DataError: naming file, line and record.
    """
    captioned = references is not None
    rows, _, records, problems = _parse(path, form, lambda module, row, n: module.question(row, n, captioned))
    if problems:
        raise DataError(rows.sentences(problems, 1)[0])
    if not records:
        raise DataError(f"{path}: holds no test records")
    if references is None:
        return records
    captions = _read_coco(references)
    keys = _caption_keys(path, rows, records, captions)
    for n, key in enumerate(keys):
        if key not in captions:
            raise DataError(
                f"{references}: no caption for image_id {key} (record {n} of {path}; {len(records)} questions)"
            )
    return [
        replace(record, answer=captions[key][0], references=tuple(captions[key]))
        for record, key in zip(records, keys, strict=True)
    ]


def _caption_keys(path: Path, rows: Rows, records: Sequence[TestRecord], captions: dict[str, list[str]]) -> list[str]:
    """The ``image_id`` of every question."""
    named = [
        _key(row["image_id"]) if isinstance(row, dict) and row.get("image_id") is not None else None
        for row in rows.rows
    ]
    if all(name is not None for name in named):
        return [str(name) for name in named]
    if any(name is not None for name in named):
        first = named.index(None)
        raise DataError(rows.sentences({first: "has no image_id, and other questions have one"}, 1)[0])
    own = [_key(record.question_id) for record in records]
    if len(set(own)) == len(own) and all(key in captions for key in own):
        return own
    return [str(n) for n in range(1, len(records) + 1)]


def _key(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are one."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def _read_coco(path: Path) -> dict[str, list[str]]:
    text = read_text(path, "caption")
    try:
        raw = bounded.parse_json(text, constants=True)
    except ValueError as error:
        place = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        raise DataError(f"{path}{place}: broken JSON ({getattr(error, 'msg', error)})") from None
    captions: dict[str, list[str]] = {}
    try:
        for row in raw["annotations"]:
            caption = row["caption"] if isinstance(row["caption"], str) else bounded.shown(row["caption"])
            if not isinstance(row["image_id"], int | float | str):
                raise ValueError(f"image_id {bounded.shown(row['image_id'])} is no id")
            captions.setdefault(_key(row["image_id"]), []).append(whole(caption, "caption"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a COCO caption file ({bounded.shown(error)})") from None
    return captions
