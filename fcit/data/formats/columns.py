"""The columns of a table: the part of a benchmark file that maps them to keys, and the row made of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fcit.config.schema import Section
from fcit.errors import DataError
from fcit.registry import nearest

SHOWN = 30  # columns that a message lists
#: Columns that are taken for a key where the benchmark file maps none to it.
USUAL = {"id": ("question_id", "id"), "messages": ("messages", "conversations")}
PLAIN = ("question", "answer", "answer_bbox", "size")
#: Keys whose columns may hold pictures.
PICTURES = ("image", "images", "messages")


class Columns(Section):
    """Columns of a Parquet file, or of a saved or hub data set, by what they hold.

    Each default is the column of the key's own name, if there is one.
    """

    question: str | None = Field(None, description="text, with image tags or without")
    answer: str | None = Field(
        None, description="text, number or class label (its name counts); of a list the first, captions being all of it"
    )
    answer_bbox: str | None = Field(None, description="the box a test question is about")
    size: str | None = Field(None, description="width and height that the box is relative to")
    system: str | None = Field(None, description="the system message; training records only")
    messages: str | None = Field(
        None,
        description="a conversation in place of question and answer: of role and content, or of from and value; "
        "default: messages or conversations",
    )
    image: str | None = Field(None, description="one image, embedded or a path below the image root")
    images: str | None = Field(None, description="a list of them")
    id: str | None = Field(None, description="question_id; default: question_id or id, else the row's number")
    image_id: str | None = Field(None, description="what captions in a file of their own belong to")

    @model_validator(mode="after")
    def _one_kind(self) -> Columns:
        plain = [key for key in PLAIN if getattr(self, key)]
        if self.messages and plain:
            raise ValueError(f"map either messages or {', '.join(plain)}: a conversation holds its answers itself")
        return self


def chosen(path: Path, columns: Columns | None, present: Sequence[str]) -> dict[str, str]:
    """The column of each key that has one.

    Args:
        path: of the rows, for messages.
        present: names of the columns.

    Raises:
        DataError: a named column does not exist, or no column holds a question.
    """
    named = {key: name for key, name in (columns or Columns.model_validate({})) if name is not None}
    for key, name in named.items():
        if name not in present:
            hint = nearest(name, list(present))
            raise DataError(f"{path}: columns.{key} names {name!r}{hint} (its columns: {_shown(present)})")
    usual = {key: (key,) for key in Columns.model_fields} | USUAL
    guessed = {key: next((name for name in names if name in present), None) for key, names in usual.items()}
    columns_of = {key: name for key, name in guessed.items() if name is not None} | named
    if "messages" in columns_of and not any(key in named for key in PLAIN):
        columns_of = {key: name for key, name in columns_of.items() if key not in PLAIN}
    else:
        columns_of.pop("messages", None)
    if not {"messages", "question"} & columns_of.keys():
        raise DataError(
            f"{path}: no column is known to hold a question or a conversation (its columns: {_shown(present)}); say in "
            "the benchmark file which does, e.g. `columns: {question: query, answer: label}` or "
            "`columns: {messages: chat}`"
        )
    return columns_of


def _shown(present: Sequence[str]) -> str:
    more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
    return ", ".join(present[:SHOWN]) + more


def row(values: dict[str, Any], keys: dict[str, str], unpacked: Callable[[Any], Any]) -> dict[str, Any]:
    """A row by keys as the formats of text files have them.

    Args:
        values: the row's values by column.
        keys: the column of each key.
        unpacked: a value with names in place of its pictures.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    of = {key: unpacked(values[name]) if key in PICTURES else values[name] for key, name in keys.items()}
    made = {key: of[key] for key in ("image", "images", "image_id") if of.get(key) is not None}
    if of.get("id") is not None:
        made["question_id"] = of["id"]
    system = of.get("system")
    if "messages" not in keys:
        made |= {key: of[key] for key in PLAIN[1:] if key in of}
        return {**made, "text": of.get("question"), "system": system}
    turns = _turns(of["messages"])
    from_value = bool(turns) and isinstance(turns[0], dict) and turns[0].get("from") is not None
    if system:
        turns = [{"from": "system", "value": system} if from_value else {"role": "system", "content": system}, *turns]
    return {**made, "conversations" if from_value else "messages": turns}


def _turns(value: Any) -> list[Any]:
    """A list of turns; ``datasets`` before 4.0 kept it as one turn of lists."""
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) > 1:
            raise ValueError("the lists of its conversation are not equally long")
        return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else []
