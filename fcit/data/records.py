"""Reads LLaVA-format instruction files and COCO caption references; trusts none of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from fcit.errors import DataError

IMAGE_TAG = "<image>"


@dataclass(frozen=True)
class Record:
    """One training example: image path relative to ``datasets/``, instruction and answer."""

    image: str
    instruction: str
    answer: str


@dataclass(frozen=True)
class TestRecord:
    """One question of a test set; ``answer`` is what the scorer compares with."""

    question_id: str
    image: str
    instruction: str
    answer: str
    references: tuple[str, ...] = ()


def _line_of(text: str, index: int) -> int:
    """The line on which the ``index``-th element of a top-level JSON list starts."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        while text[position] in " \t\r\n,":
            position += 1
        _, position = decoder.raw_decode(text, position)
    while text[position] in " \t\r\n,":
        position += 1
    return text.count("\n", 0, position) + 1


def _load_list(path: Path) -> tuple[list[Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such instruction file; check data_root and the benchmark file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a JSON list of records, got {type(rows).__name__}")
    return rows, text


def _text(row: Any, key: str) -> str:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {value!r}")
    return value


def _train_record(row: Any) -> Record:
    image = _text(row, "image")
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(t, dict) for t in turns[:2]):
        raise ValueError("'conversations' must be a list with a human and a gpt turn")
    if (turns[0].get("from"), turns[1].get("from")) != ("human", "gpt"):
        raise ValueError("'conversations' must start with 'human' and then 'gpt'")
    # The tag may stand anywhere; it belongs in front (as LLaVA's own loader moves it).
    instruction = _text(turns[0], "value").replace(IMAGE_TAG, "").strip()
    answer = _text(turns[1], "value")
    if not answer.strip():
        raise ValueError("the answer is empty")
    return Record(image, instruction, answer)


def _test_record(row: Any) -> TestRecord:
    missing = [k for k in ("question_id", "image", "text") if not isinstance(row, dict) or row.get(k) is None]
    if isinstance(row, dict) and row.get("answer") is None and row.get("answer_bbox") is None:
        missing.append("answer")
    if missing:
        raise ValueError(
            f"{', '.join(repr(k) for k in missing)} missing; a test record has question_id, image, text (the "
            "instruction) and answer"
        )
    question, image = _text(row, "question_id"), _text(row, "image")
    text = _text(row, "text").replace(IMAGE_TAG, "").strip()  # as in training records
    if isinstance(row.get("answer_bbox"), list):
        return TestRecord(question, image, text, str(row["answer_bbox"]))
    return TestRecord(question, image, text, _text(row, "answer_bbox" if "answer_bbox" in row else "answer"))


def _captioned_record(row: Any) -> TestRecord:
    """A test record whose answers are in the caption file."""
    return TestRecord(_text(row, "question_id"), _text(row, "image"), _text(row, "text"), "")


def _parse(path: Path, make: Any) -> list[Any]:
    rows, text = _load_list(path)
    records = []
    for index, row in enumerate(rows):
        try:
            records.append(make(row))
        except ValueError as error:
            where = f"{path}, line {_line_of(text, index)}, record {index}"
            raise DataError(f"{where}: {error}") from None
    return records


def read_train(path: Path) -> list[Record]:
    """Read a training file or a client's file (may be empty).

    Raises:
        DataError: naming file, line and record.
    """
    return _parse(path, _train_record)


def read_test(path: Path, references: Path | None = None) -> list[TestRecord]:
    """Read a test file; ``references`` is a COCO caption file whose ids count the questions 1..N.

    Raises:
        DataError: naming file, line and record.
    """
    records = _parse(path, _test_record if references is None else _captioned_record)
    if not records:
        raise DataError(f"{path}: holds no test records")
    if references is None:
        return records
    captions = _read_coco(references)
    missing = [n for n in range(1, len(records) + 1) if n not in captions]
    if missing:
        raise DataError(f"{references}: no caption for image_id {missing[0]} (ids must be 1..{len(records)})")
    return [
        TestRecord(r.question_id, r.image, r.instruction, captions[n][0], tuple(captions[n]))
        for n, r in enumerate(records, start=1)
    ]


def _read_coco(path: Path) -> dict[int, list[str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        captions: dict[int, list[str]] = {}
        for row in rows:
            captions.setdefault(int(row["image_id"]), []).append(str(row["caption"]))
    except FileNotFoundError:
        raise DataError(f"{path}: no such caption file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a COCO caption file ({error!r})") from None
    return captions


def image_path(root: Path, relative: str) -> Path:
    """Resolve an image path inside ``root``.

    Raises:
        DataError: the path or a link on it leaves the root, or nothing is there.
    """
    base = root.resolve()
    if "\0" in relative:
        raise DataError(f"image {relative!r} is not a path")
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise DataError(f"image {relative!r} leaves the image root {root}; only files inside it are opened")
    if not path.is_file():
        raise DataError(f"image {relative!r} is missing under {root}")
    return path


def open_image(root: Path, relative: str) -> Image.Image:
    """Open an image inside ``root`` as RGB.

    Raises:
        DataError: outside the root, missing, truncated or not an image.
    """
    path = image_path(root, relative)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image, perhaps truncated ({error})") from None
