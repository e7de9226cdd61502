"""The record store: files too large for memory are read once and kept as Arrow files that every process memory-maps.

:mod:`fcit.data.formats` reads and checks an instruction file. Its records are kept in the cache, under the file's path
and stamp, and mapped from there through Hugging Face ``datasets``. Small files stay lists: importing that library takes
longer than reading them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from fcit.data import formats
from fcit.data.formats import TrainFile, files, unpack
from fcit.data.formats.conversation import MAX_TEXT
from fcit.data.formats.files import Form
from fcit.data.records import BLOCK, MappedRecords, Record, TestRecord, Turn
from fcit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

MAPPED_FROM = 2**17  # bytes of an instruction file

Columns = dict[str, list[Any]]


class MappedTrainFile:
    """A training file as :class:`fcit.data.formats.TrainFile`, its records on disk."""

    def __init__(self, path: Path, data: Dataset) -> None:
        self.path, self.format = path, str(data[0]["format"]) if len(data) else ""
        self.records: Sequence[Record | None] = MappedRecords(data, _train_record)
        column = data.data.column("problem")
        bad = np.flatnonzero(column.is_valid().to_numpy())
        self.problems = {int(n): str(column[int(n)].as_py()) for n in bad}

    def sentences(self, most: int, problems: dict[int, str] | None = None) -> list[str]:
        """The first problems (default: the records' own) with file, line and record; a text file is read again."""
        return files.sentences(self.path, self.problems if problems is None else problems, most)


@dataclass(frozen=True)
class RecordStore:
    """Arrow copies of instruction files.

    Args:
        folder: where they are kept. A copy of a file that has changed is removed when the new copy is made.
    """

    folder: Path

    def train(self, path: Path, form: str | Form | None = None) -> TrainFile | MappedTrainFile:
        """A training file (its format, or how it is read; None: guessed); mapped if it is large.

        Raises:
            DataError: the file as a whole cannot be read, or no copy can be kept.
        """
        if not _large(path):
            return formats.read_train_file(path, form)
        return MappedTrainFile(path, self._mapped("train", path, None, form))

    def test(self, path: Path, references: Path | None = None, form: str | Form | None = None) -> Sequence[TestRecord]:
        """A test file; mapped if it is large.

        Raises:
            DataError: naming file, line and record; or no copy can be kept.
        """
        if not _large(path):
            return formats.read_test(path, references, form)
        return MappedRecords(self._mapped("test", path, references, form), _test_record)

    def _mapped(self, kind: str, path: Path, references: Path | None, form: str | Form | None) -> Dataset:
        form = Form.of(form)

        def columns() -> Columns:
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

    def _make(self, columns: Callable[[], Columns], file: Path, older: str) -> None:
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
                    old.unlink(missing_ok=True)  # a process that has it mapped keeps it


def _large(path: Path) -> bool:
    """Whether a copy is kept: of large files, and of data sets of the hub, which need a connection."""
    return files.place_of(path).kind == "hub" or files.size(path) >= MAPPED_FROM


def _unpacked_lost(data: Dataset, root: Path) -> bool:
    """Whether images that were unpacked for a copy are gone, judged by the first of them."""
    for row in range(min(len(data), BLOCK)):
        for image in data[row]["images"]:
            if image.startswith(f"{unpack.FOLDER}/"):
                return not (root / image).is_file()
    return False


def _origin(kind: str, *paths: Path | None) -> tuple[str, str]:
    """Names for a file and for its present content."""
    stamps = [stamp for path in paths if path is not None and (stamp := files.stamp(path))]
    names = [files.resolved(path) if path is not None else None for path in paths]

    def short(*parts: object) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    return short(kind, names), short(formats.VERSION, MAX_TEXT, stamps)


# ---------------------------------------------------------------------- Arrow files

#: Columns that hold lists, and of what; all others hold texts.
_LISTS = {
    **dict.fromkeys(("images", "questions", "answers", "references"), "string"),
    "placed": "int32",
    "size": "float64",
}


def _train_columns(path: Path, form: Form) -> Columns:
    """The columns of a training file, in the order of :func:`_train_record`'s parameters."""
    file = formats.read_train_file(path, form)
    turns = [record.turns if record else () for record in file.records]
    return {
        "images": [list(record.images) if record else [] for record in file.records],
        "questions": [[turn.question for turn in conversation] for conversation in turns],
        "answers": [[turn.answer for turn in conversation] for conversation in turns],
        "placed": [[turn.images for turn in conversation] for conversation in turns],
        "system": [record.system if record else "" for record in file.records],
        "problem": [file.problems.get(n) for n in range(len(file.records))],
        "format": [file.format] * len(file.records),
    }


def _train_record(
    images: list[str],
    questions: list[str],
    answers: list[str],
    placed: list[int],
    system: str,
    problem: str | None,
    form: str,
) -> Record | None:
    """The training record of a row; None where it cannot be used."""
    return Record(tuple(images), tuple(map(Turn, questions, answers, placed)), system) if questions else None


def _test_columns(path: Path, references: Path | None, form: Form) -> Columns:
    """The columns of a test file, in the order of :func:`_test_record`'s parameters."""
    records = formats.read_test(path, references, form)
    return {
        "question_id": [record.question_id for record in records],
        "images": [list(record.images) for record in records],
        "instruction": [record.instruction for record in records],
        "answer": [record.answer for record in records],
        "references": [list(record.references) for record in records],
        "box": [record.box for record in records],
        "size": [list(record.size or ()) for record in records],
        "kind": [record.kind for record in records],
    }


def _test_record(
    question: str,
    images: list[str],
    instruction: str,
    answer: str,
    references: list[str],
    box: str,
    size: list[float],
    kind: str,
) -> TestRecord:
    """The test record of a row."""
    width_height = (size[0], size[1]) if size else None
    return TestRecord(question, tuple(images), instruction, answer, tuple(references), box, width_height, kind)


def _write(file: Path, columns: Columns) -> None:
    """Write columns as an Arrow file."""
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({n: List(Value(_LISTS[n])) if n in _LISTS else Value("string") for n in columns})
    count = len(next(iter(columns.values())))
    with ArrowWriter(path=str(file), features=features) as writer:
        for start in range(0, count, BLOCK):
            writer.write_batch({name: values[start : start + BLOCK] for name, values in columns.items()})
        writer.finalize()


def _opened(file: Path) -> Dataset:
    """An Arrow file, memory-mapped.

    Raises:
        DataError: it is damaged.
    """
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        return Dataset.from_file(str(file))
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: a damaged copy of records ({error}); remove it, it is made again") from None
