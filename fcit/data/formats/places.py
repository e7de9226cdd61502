"""Where rows lie: an instruction file, a Parquet file, a saved data set's folder, or a data set of the hub.

``train.json``, ``train.jsonl``          text, a file
``train.parquet``, ``train-*.parquet``   one file, or several in the order of their names
``folder``, ``folder#train``             what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote
``hub:owner/name#train``                 a data set of the Hugging Face hub; ``hub:owner/name/config@revision#train``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fcit.errors import DataError
from fcit.io import bounded

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
        """Whether its rows have columns with types, which ``datasets`` knows."""
        return self.kind != "text"

    @property
    def format(self) -> str | None:
        """The format that follows from it; a text file's rows tell theirs."""
        return {"text": None, "parquet": "parquet"}.get(self.kind, "hf")

    @property
    def named(self) -> Path:
        """As the benchmark file names it, for messages."""
        return self.path if self.split is None or self.kind == "hub" else Path(f"{self.path}#{self.split}")

    def files(self) -> list[Path]:
        """The files whose bytes make up its rows, by name; none of the hub's, whose revision tells what they are."""
        if self.kind == "hub":
            return []
        if self.kind == "saved":
            folder = self.path / self.split if self.split and (self.path / SPLITS).is_file() else self.path
            return sorted(file for file in folder.rglob("*") if file.is_file())
        if "*" in self.path.name:
            return sorted(file for file in self.path.parent.glob(self.path.name) if file.is_file())
        return [self.path] if bounded.is_file(self.path) else []


def located(folder: Path, name: str) -> Path:
    """A name from a benchmark file as the path that this module's functions take."""
    return Path(name) if name.startswith(HUB) else folder / name


def place_of(path: Path) -> Place:
    """What a path names; nothing need be there."""
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
    """The path of a text file, for those who open nothing a path leads on to.

    Raises:
        DataError: it names another kind of place.
    """
    if place_of(path).is_table:
        raise DataError(f"{path}: tasks of SITE.yaml are text files (JSON list or JSON Lines); write its rows into one")
    return path


def hub_parts(place: Place) -> dict[str, str | None]:
    """``name``, ``config``, ``revision`` and ``split`` of a data set of the hub.

    Raises:
        DataError: its name is not written so.
    """
    found = _NAMED.fullmatch(str(place.path))
    if found is None:
        raise DataError(
            f"{place.path}: a data set of the hub is named hub:owner/name#split, with a configuration or a revision "
            "hub:owner/name/config@revision#split"
        )
    return found.groupdict()


def resolved(path: Path) -> str:
    """Names a place, from wherever it is looked at."""
    return str(path) if place_of(path).kind == "hub" else str(path.resolve())


def exists(path: Path) -> bool:
    """Whether something is there to be read; of the hub, that is seen when it is asked."""
    place = place_of(path)
    return place.kind == "hub" or bool(place.files())


def stamp(path: Path) -> tuple[int, ...]:
    """Sizes and times of the files: what changes when one of them is changed in place. Empty where there is none."""
    status = [file.stat() for file in place_of(path).files()]
    return tuple(number for file in status for number in (file.st_size, file.st_mtime_ns))


def size(path: Path) -> int:
    """Bytes of the files; 0 for those of the hub."""
    return sum(stamp(path)[::2])
