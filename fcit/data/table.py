"""Records too many to hold in memory: read strictly once, kept as an Arrow file that every process memory-maps.

An instruction file is parsed and judged by :mod:`fcit.data.reading`; what came of it lies in the cache under the
file's path and stamp, and whoever comes later maps it through Hugging Face ``datasets``. Small files stay lists:
importing that library takes longer than reading them.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from filelock import FileLock

from fcit.data import formats, reading
from fcit.data.formats import Form, places, unpack
from fcit.data.reading import Survey
from fcit.data.records import Record, TestRecord, Turn
from fcit.data.texts import MAX_TEXT
from fcit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")

MAPPED_FROM = 2**17  # bytes of an instruction file
BLOCK = 1024  # rows decoded at once when all are looked at


class Records(Sequence[T]):
    """A read-only sequence that holds no records itself; equal to any sequence of equal records."""

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    @abstractmethod
    def __getitem__(self, at: int | slice) -> T | Sequence[T]: ...

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[T]) -> Joined[T]:
        return Joined([self, other])

    def __radd__(self, other: Sequence[T]) -> Joined[T]:
        return Joined([other, self])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} records>"

    def _row(self, at: int) -> int:
        """A position counted from 0."""
        row = operator.index(at)
        row += len(self) if row < 0 else 0
        if not 0 <= row < len(self):
            raise IndexError(f"record {at} of {len(self)}")
        return row


class Table(Records[T]):
    """Rows of a memory-mapped Arrow file, decoded when they are asked for.

    Args:
        data: the file.
        make: a record of the values of its columns, in their order.
        rows: which of its rows these are, in this order; default: all.
    """

    def __init__(self, data: Dataset, make: Callable[..., T], rows: np.ndarray | None = None) -> None:
        self._data, self._make, self._rows = data, make, rows

    def __len__(self) -> int:
        return len(self._data) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Table[T]: ...
    def __getitem__(self, at: int | slice) -> T | Table[T]:
        if isinstance(at, slice):
            return self.select(range(*at.indices(len(self))))
        row = self._row(at)
        return self._make(*self._data[row if self._rows is None else int(self._rows[row])].values())

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK):
            stretch = slice(start, start + BLOCK)
            block = self._data[stretch if self._rows is None else self._rows[stretch]]
            yield from map(self._make, *block.values())

    def select(self, rows: Sequence[int]) -> Table[T]:
        """The records at these positions."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Table(self._data, self._make, chosen if self._rows is None else self._rows[chosen])

    def changed(self, change: Callable[[T], T]) -> Table[T]:
        """The same records, each changed when it is decoded."""
        make = self._make
        return Table(self._data, lambda *values: change(make(*values)), self._rows)

    def column(self, name: str) -> Any:
        """The Arrow column of all rows of the file."""
        return self._data.data.column(name)


class Joined(Records[T]):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = self._row(at)
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[number][row - int(self._ends[number])]  # counted from the part's end

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Several sequences as one: a list where all of them are lists."""
    if all(isinstance(part, list) for part in parts):
        return [record for part in parts for record in part]
    return Joined(parts)


def picked(records: Sequence[T], rows: Sequence[int], change: Callable[[T], T] | None = None) -> Sequence[T]:
    """The records at these positions, changed; decoded later where they are not in memory."""
    if isinstance(records, Table):
        table: Table[T] = records if len(rows) == len(records) else records.select(rows)
        return table.changed(change) if change else table
    return [change(records[row]) if change else records[row] for row in rows]


# ---------------------------------------------------------------------- files


def _train_row(
    images: list[str],
    questions: list[str],
    answers: list[str],
    placed: list[int],
    system: str,
    problem: str | None,
    form: str,
) -> Record | None:
    return Record(tuple(images), tuple(map(Turn, questions, answers, placed)), system) if questions else None


def _test_row(
    question: str, images: list[str], instruction: str, answer: str, references: list[str], box: str, size: list[float]
) -> TestRecord:
    width_height = (size[0], size[1]) if size else None
    return TestRecord(question, tuple(images), instruction, answer, tuple(references), box, width_height)


class MappedSurvey:
    """A training file as :class:`fcit.data.reading.Survey` shows it, its records on disk."""

    def __init__(self, path: Path, data: Dataset) -> None:
        self.path, self.format = path, str(data[0]["format"]) if len(data) else ""
        self.records: Sequence[Record | None] = Table(data, _train_row)
        column = data.data.column("problem")
        bad = np.flatnonzero(column.is_valid().to_numpy())
        self.problems = {int(n): str(column[int(n)].as_py()) for n in bad}

    def sentences(self, most: int, problems: dict[int, str] | None = None) -> list[str]:
        """The first problems (default: the records' own) with file, line and record; a text is read again."""
        return formats.sentences(self.path, self.problems if problems is None else problems, most)


@dataclass(frozen=True)
class Tables:
    """Arrow copies of instruction files.

    Args:
        folder: where they are kept. A copy that its file has outgrown is removed when the new one is made.
    """

    folder: Path

    def train(self, path: Path, form: str | Form | None = None) -> Survey | MappedSurvey:
        """A training file (of a format, read in a way; None: guessed), usable or not; mapped if it is large.

        Raises:
            DataError: the file as a whole cannot be used, or no copy can be kept.
        """
        if not _large(path):
            return reading.survey_train(path, form)
        return MappedSurvey(path, self._mapped("train", path, None, form))

    def test(self, path: Path, references: Path | None = None, form: str | Form | None = None) -> Sequence[TestRecord]:
        """A test file; mapped if it is large.

        Raises:
            DataError: naming file, line and record; or no copy can be kept.
        """
        if not _large(path):
            return reading.read_test(path, references, form)
        return Table(self._mapped("test", path, references, form), _test_row)

    def _mapped(self, kind: str, path: Path, references: Path | None, form: str | Form | None) -> Dataset:
        form = Form.of(form)

        def columns() -> dict[str, list[Any]]:
            return _train_columns(path, form) if kind == "train" else _test_columns(path, references, form)

        key = form.key(path)
        try:
            origin, stamps = _origin(f"{kind}/{key}" if key else kind, path, references)
            file = self.folder / f"{origin}-{stamps}.arrow"
            if file.is_file() and form.images and _unpacked_lost(_opened(file), form.images):
                file.unlink(missing_ok=True)
            if not file.is_file():
                self._make(columns, file, f"{origin}-*.arrow")
        except OSError as error:
            raise DataError(
                f"{path}: its records cannot be kept under {self.folder} ({error}); "
                "set FCIT_CACHE to a folder that can be written and has room"
            ) from None
        return _opened(file)

    def _make(self, columns: Callable[[], dict[str, list[Any]]], file: Path, older: str) -> None:
        """Write a copy, all or nothing; of two processes one does it and the other waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder / file.name.partition('-')[0]}.lock"):
            if file.is_file():
                return
            staging = file.with_suffix(f".{os.getpid()}.part")
            try:
                _write(staging, columns())
                staging.replace(file)
            finally:
                staging.unlink(missing_ok=True)
            for old in self.folder.glob(older):
                if old != file:
                    old.unlink(missing_ok=True)  # whoever has it mapped keeps it


def _large(path: Path) -> bool:
    """Whether a copy is kept: of large files, and of what the hub would have to be asked for again."""
    return places.place_of(path).kind == "hub" or places.size(path) >= MAPPED_FROM


def _unpacked_lost(data: Dataset, root: Path) -> bool:
    """Whether pictures that were unpacked for a copy are gone, by the first of them."""
    for row in range(min(len(data), BLOCK)):
        for image in data[row]["images"]:
            if image.startswith(f"{unpack.FOLDER}/"):
                return not (root / image).is_file()
    return False


def _origin(kind: str, *paths: Path | None) -> tuple[str, str]:
    """Names for a file and for its present content."""
    stamps = [stamp for path in paths if path is not None and (stamp := places.stamp(path))]
    names = [places.resolved(path) if path is not None else None for path in paths]

    def short(*parts: object) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    return short(kind, names), short(reading.VERSION, MAX_TEXT, stamps)


def _train_columns(path: Path, form: Form) -> dict[str, list[Any]]:
    survey = reading.survey_train(path, form)
    turns = [r.turns if r else () for r in survey.records]
    return {
        "images": [list(r.images) if r else [] for r in survey.records],
        "questions": [[t.question for t in told] for told in turns],
        "answers": [[t.answer for t in told] for told in turns],
        "placed": [[t.images for t in told] for told in turns],
        "system": [r.system if r else "" for r in survey.records],
        "problem": [survey.problems.get(n) for n in range(len(survey.records))],
        "format": [survey.format] * len(survey.records),
    }


def _test_columns(path: Path, references: Path | None, form: Form) -> dict[str, list[Any]]:
    found = reading.read_test(path, references, form)
    return {
        "question_id": [r.question_id for r in found],
        "images": [list(r.images) for r in found],
        "instruction": [r.instruction for r in found],
        "answer": [r.answer for r in found],
        "references": [list(r.references) for r in found],
        "box": [r.box for r in found],
        "size": [list(r.size or ()) for r in found],
    }


#: Columns that hold lists, and of what; all others hold texts.
_LISTS = {
    **dict.fromkeys(("images", "questions", "answers", "references"), "string"),
    "placed": "int32",
    "size": "float64",
}


def _write(file: Path, columns: dict[str, list[Any]]) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({n: List(Value(_LISTS[n])) if n in _LISTS else Value("string") for n in columns})
    count = len(next(iter(columns.values())))
    with ArrowWriter(path=str(file), features=features) as writer:
        for start in range(0, count, BLOCK):
            writer.write_batch({name: values[start : start + BLOCK] for name, values in columns.items()})
        writer.finalize()


def _opened(file: Path) -> Dataset:
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        return Dataset.from_file(str(file))
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: a damaged copy of records ({error}); remove it, it is made again") from None
