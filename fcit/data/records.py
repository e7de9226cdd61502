"""Reads LLaVA-format instruction files and COCO caption references; trusts none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fcit import strict
from fcit.errors import DataError

IMAGE_TAG = "<image>"
MAX_FILE = 2**30  # bytes of an instruction file
MAX_TEXT = 20_000  # characters of an instruction or answer; what a model reads at once is far less
MAX_IMAGE_BYTES = 100 * 2**20
MAX_PIXELS = 50_000_000  # decoded, 150 MB
MAX_SIDE = 1e9  # pixels that a record may claim for a side of its image; beyond it, `size` is something else
#: Formats with a decoder of Pillow's own: its EPS, for one, starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclass(frozen=True)
class Record:
    """One training example: image path relative to ``datasets/``, instruction and answer."""

    image: str
    instruction: str
    answer: str


@dataclass(frozen=True)
class TestRecord:
    """One question of a test set; ``answer`` is what the scorer compares with.

    ``size`` is width and height of the image in pixels where the file says so: the official box rule multiplies by
    the larger one.
    """

    question_id: str
    image: str
    instruction: str
    answer: str
    references: tuple[str, ...] = ()
    size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Survey:
    """A training file as it is: a record, or None where one cannot be used, and why by its index."""

    path: Path
    rows: list[Any]
    records: list[Record | None]
    problems: dict[int, str]
    text: str

    def sentences(self, most: int, problems: dict[int, str] | None = None) -> list[str]:
        """The first problems (default: the records' own), each with file, line and record."""
        return sentences(self.path, self.text, self.problems if problems is None else problems, most)


def sentences(path: Path, text: str, problems: dict[int, str], most: int) -> list[str]:
    """The first of the problems of a file's records, each with file, line and record."""
    first = sorted(problems)[:most]
    lines = _lines_of(text, first)
    return [f"{path}, line {lines[n]}, record {n}: {problems[n]}" for n in first]


def _lines_of(text: str, indices: Sequence[int]) -> dict[int, int]:
    """The lines on which elements of a top-level JSON list start; ``indices`` ascend."""
    decoder, position, index = json.JSONDecoder(), text.index("[") + 1, 0
    found = {}
    for wanted in indices:
        while True:
            while text[position] in " \t\r\n,":
                position += 1
            if index == wanted:
                break
            _, position = decoder.raw_decode(text, position)
            index += 1
        found[wanted] = text.count("\n", 0, position) + 1
    return found


def _load(path: Path, what: str) -> tuple[Any, str]:
    try:
        text = strict.read_text(path, MAX_FILE)
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what} file; check data_root and the benchmark file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        return strict.parse_json(text), text
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error})") from None


def _load_list(path: Path) -> tuple[list[Any], str]:
    rows, text = _load(path, "instruction")
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a JSON list of records, got {type(rows).__name__}")
    return rows, text


def _whole(text: str, key: str) -> str:
    """A text that can be tokenised and shown."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{key!r} has {len(text):,} characters, more than {MAX_TEXT:,}")
    if not strict.is_text(text):
        raise ValueError(f"{key!r} holds half a surrogate pair, which is no text: {text[:80]!r}")
    return text


def _text(row: Any, key: str) -> str:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {strict.shown(value)}")
    return _whole(value, key)


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


def _size(row: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height of the image; None where ``size`` is missing or means something else."""
    size = row.get("size")
    if not isinstance(size, list) or len(size) != 2:
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < MAX_SIDE for n in size):
        return None
    return float(size[0]), float(size[1])


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
        return TestRecord(question, image, text, _whole(str(row["answer_bbox"]), "answer_bbox"), size=_size(row))
    answer = _text(row, "answer_bbox" if "answer_bbox" in row else "answer")
    return TestRecord(question, image, text, answer, size=_size(row))


def _captioned_record(row: Any) -> TestRecord:
    """A test record whose answers are in the caption file."""
    return TestRecord(_text(row, "question_id"), _text(row, "image"), _text(row, "text"), "")


def _parse(path: Path, make: Callable[[Any], Any]) -> tuple[list[Any], list[Any], dict[int, str], str]:
    """Rows of a file, what ``make`` makes of each (None where it cannot), why not, and the text."""
    rows, text = _load_list(path)
    made: list[Any] = []
    problems: dict[int, str] = {}
    for index, row in enumerate(rows):
        try:
            deep = strict.depth_problem(row)
            if deep:
                raise ValueError(deep)
            made.append(make(row))
        except ValueError as error:
            made.append(None)
            problems[index] = str(error)
    return rows, made, problems, text


def survey_train(path: Path) -> Survey:
    """Read a training file or a client's file (may be empty), usable or not.

    Raises:
        DataError: the file as a whole cannot be used, naming file and line.
    """
    rows, made, problems, text = _parse(path, _train_record)
    return Survey(path, rows, made, problems, text)


def read_train(path: Path) -> list[Record]:
    """Read a training file or a client's file (may be empty), all of it.

    Raises:
        DataError: naming file, line and record.
    """
    survey = survey_train(path)
    if survey.problems:
        raise DataError(survey.sentences(1)[0])
    return [record for record in survey.records if record is not None]


def read_test(path: Path, references: Path | None = None) -> list[TestRecord]:
    """Read a test file; ``references`` is a COCO caption file whose ids count the questions 1..N.

    Raises:
        DataError: naming file, line and record.
    """
    _, records, problems, text = _parse(path, _test_record if references is None else _captioned_record)
    if problems:
        first = min(problems)
        raise DataError(f"{path}, line {_lines_of(text, [first])[first]}, record {first}: {problems[first]}")
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
    raw, _ = _load(path, "caption")
    captions: dict[int, list[str]] = {}
    try:
        for row in raw["annotations"]:
            caption = row["caption"] if isinstance(row["caption"], str) else strict.shown(row["caption"])
            captions.setdefault(int(row["image_id"]), []).append(_whole(caption, "caption"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a COCO caption file ({strict.shown(error)})") from None
    return captions


def image_path(root: Path, relative: str) -> Path:
    """Resolve an image path inside ``root``.

    Raises:
        DataError: the path or a link on it leaves the root, or no ordinary file is there.
    """
    base = root.resolve()
    name = strict.shown(relative)
    if "\0" in relative or not strict.is_text(relative):
        raise DataError(f"image {name} is not a path")
    try:
        path = (base / relative).resolve()
        if not path.is_relative_to(base):
            raise DataError(f"image {name} leaves the image root {root}; only files inside it are opened")
        if path.is_file():
            return path
        there = path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise DataError(f"image {name} is not a path that can be followed under {root} ({error})") from None
    if there and not path.is_dir():
        raise DataError(f"image {name} is not an ordinary file under {root}; pipes and devices are not opened")
    raise DataError(f"image {name} is missing under {root}")


def open_image(root: Path, relative: str) -> Image.Image:
    """Open an image inside ``root`` as RGB.

    Its size is read from its header and bounded before anything is decoded.

    Raises:
        DataError: outside the root, missing, truncated, too large or not an image.
    """
    path = image_path(root, relative)
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{path}: {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read of an image")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise whatever a broken file leads them into)
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({', '.join(FORMATS)}), perhaps truncated: {reason}") from None
