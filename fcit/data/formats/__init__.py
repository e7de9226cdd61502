"""Formats of instruction files: one module each, with what a row of it means.

A module has ``is_row(row)``, ``record(row)`` and ``question(row, number, captioned)``. To add one, write it and name
it in :data:`FORMATS`. Where rows may lie is said in :mod:`fcit.data.formats.places`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcit.data.formats.places import place_of
from fcit.errors import DataError
from fcit.io import bounded

if TYPE_CHECKING:
    from fcit.data.formats.columns import Columns

MAX_FILE = 2**30  # bytes of an instruction file

#: Name -> module; the first whose ``is_row`` holds for a file's first row is guessed. The last two are known by where
#: rows lie: in Parquet files, or in a saved or hub data set.
FORMATS = {
    "llava": "fcit.data.formats.llava",
    "messages": "fcit.data.formats.messages",
    "parquet": "fcit.data.formats.hub",
    "hf": "fcit.data.formats.hub",
}
TABLES = ("parquet", "hf")


def module(name: str) -> Any:
    """The module of a format."""
    return import_module(FORMATS[name])


@dataclass(frozen=True)
class Form:
    """How the files of a data set are read.

    Attributes:
        name: the format; None: guessed.
        columns: of tables; None: each is named as what it is.
        images: the folder that image names are relative to; embedded pictures are unpacked below it.
    """

    name: str | None = None
    columns: Columns | None = None
    images: Path | None = None

    @classmethod
    def of(cls, form: str | Form | None) -> Form:
        """From a format's name, too."""
        return form if isinstance(form, Form) else cls(form)

    def key(self, path: Path) -> str:
        """Tells apart ways of reading a file."""
        if not place_of(path).is_table:
            return self.name or ""
        mapped = self.columns.model_dump_json(exclude_none=True) if self.columns else "{}"
        return f"table/{mapped}/{self.images and self.images.resolve()}"


@dataclass(frozen=True)
class Rows:
    """The rows of a file and where they stand.

    Attributes:
        lines: positions in ascending order -> the lines they start on; None: rows have none.
        format: what they are in, where that is known without looking at them.
    """

    path: Path
    rows: list[Any]
    lines: Callable[[Sequence[int]], dict[int, int]] | None
    format: str | None = None

    def sentences(self, problems: dict[int, str], most: int) -> list[str]:
        """The first of the problems of a file's records, each with file, line and record."""
        first = sorted(problems)[:most]
        if self.lines is None:
            return [f"{self.path}, record {n}: {problems[n]}" for n in first]
        lines = self.lines(first)
        return [f"{self.path}, line {lines[n]}, record {n}: {problems[n]}" for n in first]


def guess(rows: Sequence[Any]) -> str:
    """The format of a file's rows, by the first that looks like one; LLaVA's where none does."""
    for row in rows:
        for name in FORMATS:
            if module(name).is_row(row):
                return name
    return "llava"


def read_text(path: Path, what: str) -> str:
    """Text of an instruction file, without a byte-order mark.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return bounded.read_text(path, MAX_FILE).removeprefix("\ufeff")
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what} file; check data_root and the benchmark file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_rows(path: Path, form: Form = Form()) -> Rows:
    """The rows of a JSON list, of JSON Lines or of a table.

    Raises:
        DataError: none of them, naming file and line.
    """
    place = place_of(path)
    if place.is_table != (form.name in TABLES) and form.name is not None:
        what = f"is in format {place.format}" if place.is_table else "is neither Parquet nor a saved or hub data set"
        raise DataError(f"{path}: {what}, and the benchmark file says format: {form.name}; leave it out, it is guessed")
    if place.is_table:
        from fcit.data.formats import hub

        return hub.read(place, form)
    text = read_text(path, "instruction")
    if path.suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    try:
        rows = bounded.parse_json(text, constants=True)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # one object, and another behind it
            return _json_lines(path, text)
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a JSON list of records or JSON Lines, got {type(rows).__name__}")
    return Rows(path, rows, lambda indices: _lines_of(text, indices))


def sentences(path: Path, problems: dict[int, str], most: int) -> list[str]:
    """As :meth:`Rows.sentences`; text is read again for its lines."""
    rows = Rows(path, [], None) if place_of(path).is_table else read_rows(path)
    return rows.sentences(problems, most)


def _json_lines(path: Path, text: str) -> Rows:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(bounded.parse_json(line, constants=True))
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{path}, line {number}: broken JSON ({reason})") from None
        lines.append(number)
    return Rows(path, rows, lambda indices: {n: lines[n] for n in indices})


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
