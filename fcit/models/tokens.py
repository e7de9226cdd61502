"""Tokens of records, computed once: stored by the content of the records, and memory-mapped later.

A record is identified by its texts and the positions of its images, not by its file: the tokens of a data set serve
the clients' shards, every selection of its records and the next version of its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fcit.data import prompts
from fcit.data.collate import Encoded
from fcit.data.records import Record, RecordSequence, TestRecord
from fcit.io.cache import used

AT_ONCE = 1024  # records looked up together
FULL = 2**24  # numbers held in memory before they are written: 64 MB of token ids
_KEY = 16  # bytes of a key
_ABOUT = 48  # numbers that keys, offsets etc. of one record count as

#: Type codes of a shelf's columns. ``ends`` and ``answer_ends`` hold the start of each record and the last end.
_COLUMNS = {"tokens": "i", "ends": "q", "answers": "i", "answer_ends": "q", "images": "i", "dropped": "i"}
_INDEX = {"keys", "rows"}  # ascending by the keys' first half; both int64

Conversation = Record | TestRecord
#: Tokenises records; a text in place of tokens states why a record has none.
Encode = Callable[[Iterable[Conversation]], Iterable[Encoded | str]]


def key_of(record: Conversation, sizes: Sequence[tuple[int, int]] = ()) -> bytes:
    """Identifies what the tokens of a record or question depend on besides the model; not its image files."""
    content = [getattr(record, "system", ""), len(record.images), prompts.turns_of(record), *sizes]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=_KEY).digest()


class Shelf:
    """Tokenised records one after the other, without the paths of their images.

    Args:
        columns: arrays under the names of ``_COLUMNS``; the spans of answers are stored flat, as pairs.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def example(self, row: int, images: tuple[str, ...]) -> Encoded:
        """The record in a row, with these images."""
        spans = self._stretch("answers", "answer_ends", row)
        return Encoded(
            tuple(self._stretch("tokens", "ends", row)),
            tuple(zip(spans[::2], spans[1::2], strict=True)),
            images[: self.columns["images"][row]],
            int(self.columns["dropped"][row]),
        )

    def _stretch(self, of: str, ends: str, row: int) -> list[int]:
        first, last = self.columns[ends][row : row + 2]
        return self.columns[of][first:last].tolist()


class Draft(Shelf):
    """A shelf in memory, to which records are added."""

    def __init__(self) -> None:
        super().__init__({name: array(code) for name, code in _COLUMNS.items()})
        self.rows: dict[bytes, int] = {}  # of each key
        self.columns["ends"].append(0)
        self.columns["answer_ends"].append(0)

    @property
    def size(self) -> int:
        """Its size in numbers, to compare with ``FULL``."""
        return len(self.columns["tokens"]) + _ABOUT * len(self.rows)

    def add(self, key: bytes, example: Encoded) -> int:
        """Append a record; returns its row."""
        into = self.columns
        into["tokens"].extend(example.tokens)
        into["ends"].append(len(into["tokens"]))
        into["answers"].extend(at for span in example.answers for at in span)
        into["answer_ends"].append(len(into["answers"]))
        into["images"].append(len(example.images))
        into["dropped"].append(example.dropped)
        self.rows[key] = len(self.rows)
        return self.rows[key]

    def content(self) -> bytes:
        """The content as a safetensors file."""
        keys = _halves(self.rows)
        order = np.argsort(keys[0], kind="stable")
        columns = {name: np.array(column) for name, column in self.columns.items()}
        return save({**columns, "keys": np.ascontiguousarray(keys[:, order]), "rows": order.astype(np.int64)})


class Kept(Shelf):
    """A shelf memory-mapped from its file, which is named after the hash of its content.

    Raises:
        ValueError: the file is no shelf.
    """

    def __init__(self, file: Path) -> None:
        try:
            with safe_open(str(file), "pt") as opened:  # numpy would read everything into memory
                super().__init__({name: opened.get_tensor(name).numpy() for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, RuntimeError) as error:
            raise ValueError(f"{file}: cannot be mapped ({error})") from None
        self._file = file
        kinds = {name: column.dtype for name, column in self.columns.items()}
        wanted = {name: np.dtype(code) for name, code in _COLUMNS.items()} | dict.fromkeys(_INDEX, np.dtype("q"))
        if kinds != wanted or not self._shaped():
            raise ValueError(f"{file}: not tokens of records")

    def _shaped(self) -> bool:
        flat = {column.ndim for name, column in self.columns.items() if name != "keys"} == {1}
        count = self.columns["rows"].size
        return flat and count > 0 and self.columns["keys"].shape == (2, count)

    @cached_property
    def sound(self) -> bool:
        """Whether the content is undamaged and consistent; checked once, at first use."""
        try:
            with self._file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != self._file.stem:
                    return False
        except OSError:
            return False
        return self._fits()

    def _fits(self) -> bool:
        of, count = self.columns, len(self.columns["rows"])
        if {len(of["ends"]), len(of["answer_ends"]), len(of["images"]) + 1, len(of["dropped"]) + 1} != {count + 1}:
            return False
        lengths, numbers = np.diff(of["ends"]), np.diff(of["answer_ends"])
        bounds = [of["ends"][0], of["ends"][-1], of["answer_ends"][0], of["answer_ends"][-1]]
        if bounds != [0, len(of["tokens"]), 0, len(of["answers"])] or (lengths < 0).any() or (numbers < 0).any():
            return False
        if (numbers % 2).any() or min(of["images"].min(), of["rows"].min()) < 0 or of["rows"].max() >= count:
            return False
        begins, stops = of["answers"][::2], of["answers"][1::2]
        return bool(((begins >= 0) & (begins < stops) & (stops <= np.repeat(lengths, numbers // 2))).all())

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The rows of records by their keys; -1 for unknown ones."""
        wanted, known = _halves(keys), self.columns["keys"]
        places = np.searchsorted(known[0], wanted[0]).clip(max=known.shape[1] - 1)
        equal = (known[:, places] == wanted).all(axis=0)
        return np.where(equal, self.columns["rows"][places], -1).tolist()


def _halves(keys: Iterable[bytes]) -> np.ndarray:
    """Keys as two rows of numbers, ``(2, N)`` int64."""
    return np.frombuffer(b"".join(keys), np.int64).reshape(-1, 2).T


class Entry(NamedTuple):
    """The place of a record's tokens, and its images."""

    shelf: Shelf
    row: int
    images: tuple[str, ...]

    @property
    def example(self) -> Encoded:
        """The record, tokenised."""
        return self.shelf.example(self.row, self.images)


class Tokenised(RecordSequence[Encoded]):
    """Tokenised records, read from their shelves when accessed."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        return [entry.example for entry in self._entries[at]] if isinstance(at, slice) else self._entries[at].example


class Tokens:
    """Tokens of records by one model's tokenizer: in the files of a folder, new ones in memory.

    Args:
        folder: named after everything besides the record that tokens depend on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._draft = Draft()
        self._files: dict[Path, Kept | None] = {}

    def entries(
        self,
        records: Iterable[Conversation],
        encode: Encode,
        sizes: Callable[[Conversation], Sequence[tuple[int, int]]] = lambda record: (),
    ) -> Iterator[Entry | str]:
        """The entries of records; missing ones are tokenised. A text in place of an entry states why there is none.

        Args:
            sizes: of a record's images, where its tokens depend on them.
        """
        rest = iter(records)
        while waiting := list(islice(rest, AT_ONCE)):
            keys = [key_of(record, sizes(record)) for record in waiting]
            known: dict[bytes, tuple[Shelf, int] | str] = dict(self._found(keys))
            new = {key: record for key, record in zip(keys, waiting, strict=True) if key not in known}
            for key, example in zip(new, encode(new.values()) if new else (), strict=True):
                known[key] = example if isinstance(example, str) else (self._draft, self._draft.add(key, example))
            if self._draft.size > FULL:
                self.keep()
                self._draft = Draft()  # discarded if it could not be written
            for key, record in zip(keys, waiting, strict=True):
                place = known[key]
                yield place if isinstance(place, str) else Entry(*place, record.images)

    def keep(self) -> None:
        """Write new tokens for other processes."""
        if self._draft.rows:
            content = self._draft.content()
            file = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
            if written(file, content):
                self._draft = Draft()
                self._files.pop(file, None)  # it may have been damaged before

    def _found(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, tuple[Shelf, int]]]:
        drafted = self._draft.rows
        yield from ((key, (self._draft, drafted[key])) for key in keys if key in drafted)
        missing = [key for key in dict.fromkeys(keys) if key not in drafted]
        for file in self.folder.glob("*.safetensors") if missing else ():
            shelf = self._shelf(file)
            rows = dict(zip(missing, shelf.find(missing), strict=True)) if shelf and missing else {}
            present = {key: row for key, row in rows.items() if row >= 0}
            if shelf and present and shelf.sound:
                used(file)
                yield from ((key, (shelf, row)) for key, row in present.items())
                missing = [key for key in missing if key not in present]

    def _shelf(self, file: Path) -> Kept | None:
        """A file of the folder; None if it is damaged, so that its records are tokenised again."""
        if file not in self._files:
            try:
                self._files[file] = Kept(file)
            except ValueError:
                self._files[file] = None
        return self._files[file]


def written(file: Path, content: bytes) -> bool:
    """Write a cache file atomically; False if that is impossible, which only costs time."""
    staging = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            staging.unlink()  # on a full disk the part that was written would stay
        return False
    return True
