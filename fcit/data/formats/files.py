"""Instruction files: where their rows lie, and reading the rows; what a row means is the concern of its format.

A benchmark file names them in one of these ways:

``train.json``, ``train.jsonl``          a text file: a JSON list, or JSON Lines
``train.parquet``, ``train-*.parquet``   one Parquet file, or several in the order of their names
``folder``, ``folder#train``             what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote
``hub:owner/name#train``                 a data set of the Hugging Face hub; ``hub:owner/name/config@revision#train``
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fcit.errors import DataError
from fcit.io import bounded

if TYPE_CHECKING:
    from fcit.data.formats.columns import Columns

MAX_FILE = 2**30  # bytes of an instruction file
TABLES = ("parquet", "hf")  # formats that follow from where rows lie
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")  # what a text file is often delivered in
HUB = "hub:"
_NAMED = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.+-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>.+))?")
#: Marks a folder as a saved data set, or as one of several splits.
STATE, SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class Place:
    """Where rows lie.

    Attributes:
        path: the file or folder; of a data set of the hub its name, as given.
        split: the part behind ``#``.
    """

    kind: Literal["text", "parquet", "saved", "hub"]
    path: Path
    split: str | None = None

    @property
    def is_table(self) -> bool:
        """Whether its rows have typed columns, which ``datasets`` reads."""
        return self.kind != "text"

    @property
    def format(self) -> str | None:
        """The format that follows from the place; None: that of a text file is found from its rows."""
        return {"text": None, "parquet": "parquet"}.get(self.kind, "hf")

    @property
    def named(self) -> Path:
        """As the benchmark file names it, for messages."""
        return self.path if self.split is None or self.kind == "hub" else Path(f"{self.path}#{self.split}")

    def files(self) -> list[Path]:
        """The files whose bytes make up its rows, by name; none for the hub, where a revision identifies them."""
        if self.kind == "hub":
            return []
        if self.kind == "saved":
            folder = self.path / self.split if self.split and (self.path / SPLITS).is_file() else self.path
            return sorted(file for file in folder.rglob("*") if file.is_file())
        if "*" in self.path.name:
            return sorted(file for file in self.path.parent.glob(self.path.name) if file.is_file())
        return [self.path] if bounded.is_file(self.path) else []


def located(folder: Path, name: str) -> Path:
    """The path, as this module's functions take it, of a name in a benchmark file."""
    return Path(name) if name.startswith(HUB) else folder / name


def place_of(path: Path) -> Place:
    """What a path names; it need not exist."""
    if str(path).startswith(HUB):
        return Place("hub", path, str(path).partition("#")[2] or None)
    split = None
    if "#" in path.name and not bounded.is_file(path) and not bounded.is_dir(path):
        name, _, split = path.name.rpartition("#")
        path = path.with_name(name) if name else path
    if path.suffix.lower() == ".parquet" and not bounded.is_dir(path):
        return Place("parquet", path, split)
    return Place("saved" if split is not None or bounded.is_dir(path) else "text", path, split)


def text_only(path: Path) -> Path:
    """The path, if it names a text file: sites open no other kind.

    Raises:
        DataError: it names another kind of place.
    """
    if place_of(path).is_table:
        raise DataError(f"{path}: tasks of SITE.yaml are text files (JSON list or JSON Lines); write its rows into one")
    return path


def hub_parts(place: Place) -> dict[str, str | None]:
    """``name``, ``config``, ``revision`` and ``split`` of a data set of the hub.

    Raises:
        DataError: its name has another form.
    """
    match = _NAMED.fullmatch(str(place.path))
    if match is None:
        raise DataError(
            f"{place.path}: a data set of the hub is named hub:owner/name#split, with a configuration or a revision "
            "hub:owner/name/config@revision#split"
        )
    return match.groupdict()


def resolved(path: Path) -> str:
    """The name of a place that is the same in every working folder."""
    return str(path) if place_of(path).kind == "hub" else str(path.resolve())


def exists(path: Path) -> bool:
    """Whether there is a file to read; always for the hub, where loading shows it."""
    place = place_of(path)
    return place.kind == "hub" or bool(place.files())


def stamp(path: Path) -> tuple[int, ...]:
    """Sizes and times of the files: what changes when one of them is changed in place. Empty where none exists."""
    status = [file.stat() for file in place_of(path).files()]
    return tuple(number for file in status for number in (file.st_size, file.st_mtime_ns))


def size(path: Path) -> int:
    """Bytes of the files; 0 for those of the hub."""
    return sum(stamp(path)[::2])


def stamps(*paths: Path) -> list[object]:
    """Names and stamps of files: what identifies their present content."""
    return [part for path in paths for part in (resolved(path), *stamp(path))]


# ---------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Form:
    """How the files of a data set are read.

    Attributes:
        name: the format; None: guessed.
        columns: of tables; None: each column has the name of its key.
        images: the folder that image names are relative to; embedded pictures are unpacked below it.
    """

    name: str | None = None
    columns: Columns | None = None
    images: Path | None = None

    @classmethod
    def of(cls, form: str | Form | None) -> Form:
        """The form that a format's name stands for; a form as it is."""
        return form if isinstance(form, Form) else cls(form)

    def key(self, path: Path) -> str:
        """Identifies this way of reading a file, among others of the same file."""
        if not place_of(path).is_table:
            return self.name or ""
        mapped = self.columns.model_dump_json(exclude_none=True) if self.columns else "{}"
        return f"table/{mapped}/{self.images and self.images.resolve()}"


@dataclass(frozen=True)
class Rows:
    """The rows of a file and where they stand.

    Attributes:
        lines: positions in ascending order -> the lines they start on; None: rows have none.
        format: their format, where it follows from the place; None: it is found from the rows.
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
        hint = "; unpack it first" if path.suffix.lower() in PACKED else ""
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}){hint}") from None


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
        from fcit.data.formats import hub  # it takes a while to import

        return hub.read(place, form)
    text = read_text(path, "instruction")
    if path.suffix.lower() in (".jsonl", ".ndjson") and not text.lstrip().startswith("["):
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
    lines = {}
    for wanted in indices:
        while True:
            while text[position] in " \t\r\n,":
                position += 1
            if index == wanted:
                break
            _, position = decoder.raw_decode(text, position)
            index += 1
        lines[wanted] = text.count("\n", 0, position) + 1
    return lines
