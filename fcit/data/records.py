"""Records: what a client learns from and what a model is asked, whatever format of file they came from.

Sequences of records are lists, or :class:`RecordSequence`, which decodes a record when it is accessed.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")

BLOCK = 1024  # records decoded at once when all are read


@dataclass(frozen=True)
class Turn:
    """A question and its answer; ``images`` of the record's images stand, in order, in front of the question."""

    question: str
    answer: str
    images: int = 0


@dataclass(frozen=True)
class Record:
    """One training record, a conversation: every answer in it is learnt.

    Attributes:
        images: paths relative to the image root, in the order in which the turns hold them; may be empty.
        turns: at least one.
        system: replaces the conversation's default system sentence; empty: it does not.
    """

    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    system: str = ""

    @classmethod
    def single(cls, image: str, question: str, answer: str) -> Record:
        """One image, one question and its answer."""
        return cls((image,), (Turn(question, answer, 1),))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Its questions."""
        return tuple(turn.question for turn in self.turns)

    def first(self) -> Record:
        """Its first question and answer alone, with all images in front (``data.turns: first``)."""
        turn = self.turns[0]
        return Record(self.images, (Turn(turn.question, turn.answer, len(self.images)),), self.system)


@dataclass(frozen=True)
class TestRecord:
    """One question of a test set.

    Attributes:
        answer: the truth that the scorer compares with.
        references: all right answers or captions, of which ``answer`` is the first.
        box: the box the question is about, as the file writes it (``answer_bbox``); rules for boxes compare with it.
        size: width and height of the image that the box is relative to, where the file has them.
        kind: what sort of question it is, where the file says so (``answer_type``, ``task``) and a rule asks.
    """

    question_id: str
    images: tuple[str, ...]
    instruction: str
    answer: str
    references: tuple[str, ...] = ()
    box: str = ""
    size: tuple[float, float] | None = None
    kind: str = ""

    @property
    def image(self) -> str:
        """The first image; empty if there is none."""
        return self.images[0] if self.images else ""

    @property
    def instructions(self) -> tuple[str, ...]:
        """Its question, as a record's questions."""
        return (self.instruction,)


@dataclass(frozen=True)
class OpenConversation(TestRecord):
    """A question, ``instruction``, that follows earlier turns.

    Attributes:
        history: the earlier turns; the images that they do not hold stand in front of ``instruction``.
        system: replaces the conversation's default system sentence; empty: it does not.
    """

    history: tuple[Turn, ...] = ()
    system: str = ""

    @property
    def instructions(self) -> tuple[str, ...]:
        """All its questions, from the first on."""
        return (*(turn.question for turn in self.history), self.instruction)


def placed(folder: str, images: tuple[str, ...]) -> tuple[str, ...]:
    """Names of images relative to the image root, of a data set whose names are relative to a folder below it."""
    return tuple(f"{folder}/{image}" for image in images) if folder else images


def with_suffix(instruction: str, suffix: str) -> str:
    """An instruction followed by its suffix line, once; blanks at the line's end are no part of it."""
    suffix = suffix.rstrip()
    if not suffix or instruction.rstrip().endswith(suffix):
        return instruction
    return f"{instruction}\n{suffix}" if instruction.strip() else suffix.lstrip()


def suffixed(record: Record, suffix: str) -> Record:
    """A record with the suffix line after each of its questions."""
    turns = tuple(replace(turn, question=with_suffix(turn.question, suffix)) for turn in record.turns)
    return replace(record, turns=turns) if suffix else record


# ---------------------------------------------------------------------- sequences


class RecordSequence(Sequence[T]):
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

    def __add__(self, other: Sequence[T]) -> JoinedRecords[T]:
        return JoinedRecords([self, other])

    def __radd__(self, other: Sequence[T]) -> JoinedRecords[T]:
        return JoinedRecords([other, self])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} records>"

    def _row(self, at: int) -> int:
        """A position counted from 0."""
        row = operator.index(at)
        row += len(self) if row < 0 else 0
        if not 0 <= row < len(self):
            raise IndexError(f"record {at} of {len(self)}")
        return row


class MappedRecords(RecordSequence[T]):
    """Records of a memory-mapped Arrow file, each decoded when it is accessed.

    Args:
        data: the file.
        make: makes a record of a row's values, in the order of the columns.
        rows: the rows of the file that these records are, in this order; default: all.
    """

    def __init__(self, data: Dataset, make: Callable[..., T], rows: np.ndarray | None = None) -> None:
        self._data, self._make, self._rows = data, make, rows

    def __len__(self) -> int:
        return len(self._data) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> MappedRecords[T]: ...
    def __getitem__(self, at: int | slice) -> T | MappedRecords[T]:
        if isinstance(at, slice):
            return self.select(range(*at.indices(len(self))))
        row = self._row(at)
        return self._make(*self._data[row if self._rows is None else int(self._rows[row])].values())

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK):
            stretch = slice(start, start + BLOCK)
            block = self._data[stretch if self._rows is None else self._rows[stretch]]
            yield from map(self._make, *block.values())

    def select(self, rows: Sequence[int]) -> MappedRecords[T]:
        """The records at these positions."""
        chosen = np.asarray(rows, dtype=np.int64)
        return MappedRecords(self._data, self._make, chosen if self._rows is None else self._rows[chosen])

    def changed(self, change: Callable[[T], T]) -> MappedRecords[T]:
        """The same records, each changed when it is decoded."""
        make = self._make
        return MappedRecords(self._data, lambda *values: change(make(*values)), self._rows)


class JoinedRecords(RecordSequence[T]):
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
    return JoinedRecords(parts)


def picked(records: Sequence[T], rows: Sequence[int], change: Callable[[T], T] | None = None) -> Sequence[T]:
    """The records at these positions, changed; decoded later where they are not in memory."""
    if isinstance(records, MappedRecords):
        mapped: MappedRecords[T] = records if len(rows) == len(records) else records.select(rows)
        return mapped.changed(change) if change else mapped
    return [change(records[row]) if change else records[row] for row in rows]
