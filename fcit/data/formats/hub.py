"""Parquet files and data sets that ``datasets`` saved or gets from the Hugging Face hub, their columns mapped.

A conversation in a column is read as text files of that format are. Nothing is decoded, nothing is unpickled and no
code of a data set is run (``datasets`` from 4.0 on has no way to). Rows have numbers and no lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcit.data.formats import columns, llava, messages
from fcit.data.formats.conversation import Message, images_of, record_of, text_of
from fcit.data.formats.files import SPLITS, STATE, Form, Place, Rows, hub_parts
from fcit.data.formats.unpack import Unpacked
from fcit.data.records import Record, TestRecord
from fcit.errors import DataError
from fcit.io import bounded

if TYPE_CHECKING:
    from datasets import Dataset, Features

BATCH = 64  # rows with their pictures that are in memory at once


@dataclass(frozen=True)
class Unusable:
    """Stands for a row that could not be made, and why."""

    why: str


def is_row(row: Any) -> bool:
    """Always False: this format follows from where rows lie."""
    return False


def record(row: Any) -> Record:
    """The record of a row.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    if isinstance(row, Unusable):
        raise ValueError(row.why)
    if "text" not in row:
        return (llava if "conversations" in row else messages).record(row)
    messages_ = [Message("system", text_of(row, "system"))] if row.get("system") else []
    messages_.append(Message("user", text_of({"question": row["text"]}, "question")))
    messages_.append(Message("assistant", text_of({"answer": llava.answers_of(row)[0]}, "answer")))
    return record_of(images_of(row), messages_)


def question(row: Any, number: int, captioned: bool = False) -> TestRecord:
    """The test record of a row; a list of answers is a list of right ones, the first of them the answer.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    if isinstance(row, Unusable):
        raise ValueError(row.why)
    row = {"question_id": str(number), **row}
    if "text" in row:
        row["text"] = text_of({"question": row["text"]}, "question")
    else:
        return (llava if "conversations" in row else messages).question(row, number, captioned)
    if row.get("system"):
        raise ValueError("a test question has no system turn; put it into the question")
    return llava.question(row, number, captioned)


# ---------------------------------------------------------------------- rows


def read(place: Place, form: Form) -> Rows:
    """The rows of a table by what their columns are; embedded pictures are unpacked on the way.

    Raises:
        DataError: it cannot be read, a column does not exist, or pictures cannot be unpacked.
    """
    if place.kind == "hub":
        unpacked = Unpacked(form.images, str(hub_parts(place)["name"]).replace("/", "--"), _kept_by_the_hub())
    else:
        unpacked = Unpacked(form.images, place.path.parent.name if "*" in place.path.name else place.path.stem)
    rows: list[Any] = []
    try:
        table = _Parquet(place, form) if place.kind == "parquet" else _Saved(place, form)
        for values in table.rows():
            try:
                rows.append(columns.row(_named(values, table.features), table.keys, unpacked.names))
            except ValueError as error:
                rows.append(Unusable(str(error)))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  (pyarrow and datasets raise whatever a broken file leads them into)
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{place.named}: cannot be read, perhaps damaged ({type(error).__name__}: {reason})") from None
    return Rows(place.named, rows, None, place.format)


class _Parquet:
    """One or several Parquet files."""

    def __init__(self, place: Place, form: Form) -> None:
        import pyarrow
        from datasets import Features
        from pyarrow.parquet import ParquetFile

        if place.split is not None:
            raise DataError(f"{place.path}: a Parquet file has no splits; leave out #{place.split}")
        if not place.files():
            raise DataError(f"{place.path}: no such file; check data_root and the benchmark file")
        self._files = [ParquetFile(file) for file in place.files()]
        schema = self._files[0].schema_arrow
        self.keys = columns.chosen(place.named, form.columns, schema.names)
        self._names = sorted(set(self.keys.values()))
        for file, opened in zip(place.files(), self._files, strict=True):
            missing = [name for name in self._names if name not in opened.schema_arrow.names]
            if missing:
                raise DataError(f"{file}: has no column {missing[0]!r}, which {place.files()[0]} has")
        fields = [schema.field(name) for name in self._names]
        known = b"huggingface" in (schema.metadata or {})  # else there are no class labels
        self.features = Features.from_arrow_schema(pyarrow.schema(fields, schema.metadata)) if known else Features()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row by column."""
        for file in self._files:
            for batch in file.iter_batches(BATCH, columns=self._names):
                yield from batch.to_pylist()


class _Saved:
    """A data set of ``datasets``, from a folder or the hub."""

    def __init__(self, place: Place, form: Form) -> None:
        data = _from_hub(place) if place.kind == "hub" else _from_folder(place)
        self.keys = columns.chosen(place.named, form.columns, data.column_names)
        names = sorted(set(self.keys.values()))
        # Arrow's own values: pictures stay bytes.
        self._data, self.features = data.select_columns(names).with_format("arrow"), data.features

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row by column."""
        for start in range(0, len(self._data), BATCH):
            batch = self._data[start : start + BATCH]
            batch.validate(full=True)  # a damaged file leads elsewhere in memory
            yield from batch.to_pylist()


def _from_folder(place: Place) -> Dataset:
    from datasets import Dataset

    folder, split = place.path, place.split
    if bounded.is_file(folder / SPLITS):
        splits = bounded.parse_json(bounded.read_text(folder / SPLITS, bounded.YAML_LENGTH))["splits"]
        folder = folder / _split_of(place.path, split, [name for name in splits if Path(name).name == name])
    elif split is not None:
        raise DataError(f"{place.path}: holds no splits ({SPLITS}); leave out #{split}")
    if not bounded.is_file(folder / STATE):
        raise DataError(
            f"{folder}: a folder without {STATE}, which Dataset.save_to_disk writes; name a file of it, or the files "
            "of Parquet as FOLDER/*.parquet"
        )
    state = json.loads(bounded.read_text(folder / STATE, bounded.YAML_LENGTH))
    for file in state["_data_files"]:
        if Path(file["filename"]).name != file["filename"]:
            raise DataError(f"{folder / STATE}: names {bounded.shown(file['filename'])}, which lies elsewhere")
    return Dataset.load_from_disk(str(folder))


def _split_of(path: Path, split: str | None, names: list[str]) -> str:
    """The split that is meant, of those with these names.

    Raises:
        DataError: it does not exist, or none is named and there are several.
    """
    if split in names:
        return str(split)
    if split is None and len(names) == 1:
        return names[0]
    problem = "which of its splits is meant is not said" if split is None else f"it has no split {split!r}"
    raise DataError(f"{path}: {problem}; there are: {', '.join(f'{path}#{name}' for name in names)}")


def _from_hub(place: Place) -> Dataset:
    """Load a data set from the hub, or from the copy that its library keeps."""
    import datasets

    parts = hub_parts(place)
    name, split = str(parts["name"]), parts["split"]
    if Path(name).exists():  # `datasets` would take that
        raise DataError(f"{place.path}: here is a folder {name}; start from another one, or name it without hub:")
    try:
        loaded = datasets.load_dataset(name, parts["config"], split=split, revision=parts["revision"])
    except Exception as error:  # noqa: BLE001  (the hub's library passes on whatever its HTTP client raises)
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{place.path}: cannot be had from the Hugging Face hub ({type(error).__name__}: {reason}); check name and "
            "connection (HTTPS_PROXY, HF_ENDPOINT), or where there is one run `python -c 'import datasets; "
            f'datasets.load_dataset("{name}").save_to_disk("FOLDER")\'` and name its copy here: '
            f"FOLDER#{split or 'train'}"
        ) from None
    if split is None:
        loaded = loaded[_split_of(place.path, None, list(loaded))]
    return loaded


def _kept_by_the_hub() -> tuple[Path, ...]:
    """Where the hub's libraries keep files."""
    from datasets import config
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE), Path(config.HF_DATASETS_CACHE)


def _named(values: dict[str, Any], features: Features) -> dict[str, Any]:
    """A row with names in place of the numbers of class labels.

    Raises:
        ValueError: a number without a name.
    """
    return {name: _label(value, features.get(name), name) for name, value in values.items()}


def _label(value: Any, feature: Any, column: str) -> Any:
    names = getattr(feature, "names", None)
    if isinstance(value, list):
        return [_label(part, getattr(feature, "feature", None), column) for part in value]
    if names is None or value is None:
        return value
    if not 0 <= value < len(names):
        raise ValueError(f"column {column!r} holds the class {value}; there are {len(names)}, counted from 0")
    return names[value]
