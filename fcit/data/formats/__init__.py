"""Readers: from an instruction file to its records, in every format we know; trusts none of them.

A format is one module of this folder. It says what a row of a file means, with ``is_row(row)``, ``record(row)`` and
``question(row, number, captioned)``; one whose files are no lists of rows says how they are read,
``read_folder(path)``. To add one, write the module and name it in :data:`fcit.registry.FORMATS`. Where
rows are read from (a text file, Parquet, a saved data set, the hub) is the concern of :mod:`fcit.data.formats.files`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcit import registry
from fcit.data.formats import captions
from fcit.data.formats.files import Form, Rows, read_rows
from fcit.data.records import Record, TestRecord
from fcit.errors import DataError
from fcit.io import bounded

#: Raised whenever a file is read differently, so that what was kept of it in the cache is made anew.
VERSION = 4


def module(name: str) -> Any:
    """The module of a format."""
    return registry.resolve("format", name)


def guess(rows: Sequence[Any]) -> str:
    """The format of a file's rows, by the first row that looks like one; LLaVA's where none does."""
    for row in rows:
        for name in registry.FORMATS:
            if module(name).is_row(row):
                return name
    return "llava"


@dataclass(frozen=True)
class TrainFile:
    """A training file as it was read.

    Attributes:
        format: the name of its format.
        records: in the file's order; None where a row cannot be used.
        problems: why these cannot be used, by their positions.
        rows: what the records were made from.
    """

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
) -> tuple[Rows, str, list[Any], dict[int, str]]:
    """The rows of a file, their format, what ``make`` makes of each (None where it cannot), and why it cannot."""
    form = Form.of(form)
    own = getattr(module(form.name), "read_folder", None) if form.name else None
    rows = own(path) if own else read_rows(path, form)
    name = rows.format or form.name or guess(rows.rows)
    format_module = module(name)
    made: list[Any] = []
    problems: dict[int, str] = {}
    for index, row in enumerate(rows.rows):
        try:
            too_deep = bounded.depth_problem(row)
            if too_deep:
                raise ValueError(too_deep)
            made.append(make(format_module, row, index))
        except ValueError as error:
            made.append(None)
            problems[index] = str(error)
    return rows, name, made, problems


def read_train_file(path: Path, form: str | Form | None = None) -> TrainFile:
    """Read a training file or a client's file (which may be empty), with the records that cannot be used.

    Args:
        form: its format, or how it is read; None: guessed.

    Raises:
        DataError: the file as a whole cannot be read, naming file and line.
    """
    rows, name, records, problems = _parse(path, form, lambda module, row, index: module.record(row))
    return TrainFile(path, name, records, problems, rows)


def read_train(path: Path, form: str | Form | None = None) -> list[Record]:
    """Read a training file or a client's file (which may be empty), every record of which must be usable.

    Raises:
        DataError: naming file, line and record.
    """
    file = read_train_file(path, form)
    if file.problems:
        raise DataError(file.sentences(1)[0])
    return [record for record in file.records if record is not None]


def read_test(path: Path, references: Path | None = None, form: str | Form | None = None) -> list[TestRecord]:
    """Read a test file, every record of which must be usable; ``references`` is a file of right answers or captions.

    Raises:
        DataError: naming file, line and record.
    """
    captioned = references is not None
    rows, _, records, problems = _parse(path, form, lambda module, row, n: module.question(row, n, captioned))
    if problems:
        raise DataError(rows.sentences(problems, 1)[0])
    if not records:
        raise DataError(f"{path}: holds no test records")
    return records if references is None else captions.captioned(path, rows, records, references)
