"""Role and content, as OpenAI, TRL and ShareGPT-style files have them: ``messages`` (or ``conversations``).

``content`` is a text, with image tags or without, or a list of parts: ``{"type": "text", "text": ...}`` and
``{"type": "image", ...}``. An image part names its file itself (``image``, ``path``, ``url``, or OpenAI's
``image_url``), or stands for the next of the row's ``images``. A file is a JSON list or JSON Lines.
"""

from __future__ import annotations

from typing import Any

from fcit.data.formats.conversation import IMAGE_TAG, Message, images_of, question_of, record_of, role_of, text_of
from fcit.data.records import Record, TestRecord
from fcit.io import bounded

_KEYS = ("messages", "conversations")
_IDS = ("question_id", "id")
_FILES = ("image", "path", "url", "image_url")


def is_row(row: Any) -> bool:
    """Whether a row looks like one of this format."""
    turns = _turns(row)
    return bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]


def _turns(row: Any) -> list[Any]:
    turns = next((row[key] for key in _KEYS if row.get(key) is not None), None) if isinstance(row, dict) else None
    return turns if isinstance(turns, list) else []


def record(row: Any) -> Record:
    """The record of a row.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    turns = _turns(row)
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"'messages' must be a list of messages with 'role' and 'content', got {bounded.shown(row)}")
    unplaced, images, messages = list(images_of(row)), list[str](), []
    listed = bool(unplaced)
    for number, turn in enumerate(turns):
        text, named = _content(turn, number)
        if None not in named and named and listed:
            raise ValueError(
                f"message {number} names an image and the row lists 'images', too; one of the two is meant"
            )
        for name in named:
            if name is None and not unplaced:
                raise ValueError(f"message {number} has an image, and the row's 'images' hold no more")
            images.append(unplaced.pop(0) if name is None else name)
        messages.append(Message(role_of(turn.get("role"), number), text))
    return record_of([*images, *unplaced], messages)


def _content(turn: dict[str, Any], number: int) -> tuple[str, list[str | None]]:
    """The text of a message with a tag for every image, and these: a name, or None for the row's next."""
    content = turn.get("content")
    if isinstance(content, str | int | float):
        return text_of(turn, "content"), []  # its tags stand for the row's images
    if not isinstance(content, list):
        raise ValueError(f"the 'content' of message {number} must be text or a list, got {bounded.shown(content)}")
    texts: list[str] = []
    named: list[str | None] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(text_of(part, "text"))
        elif kind in ("image", "image_url"):
            named.append(_file(part))
        else:
            raise ValueError(f"message {number} has a part of type {bounded.shown(kind)}; known are text and image")
    return IMAGE_TAG * len(named) + "\n".join(texts), named


def _file(part: dict[str, Any]) -> str | None:
    """The file of an image part; None: the next of the row's images."""
    value = next((part[key] for key in _FILES if part.get(key) is not None), None)
    if isinstance(value, dict):
        value = value.get("url") or value.get("path")
    if value is None:
        return None
    name = text_of({"image": value}, "image").removeprefix("file://")
    if "://" in name or name.startswith("data:"):
        raise ValueError(f"the image {name[:80]!r} is no file; save it below the image root and name it there")
    return name


def question(row: Any, number: int, captioned: bool = False) -> TestRecord:
    """The test record of a row of one user and one assistant message; ``question_id`` or ``id``, else its number.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    if captioned:
        raise ValueError("captions in a file of their own go with questions in LLaVA's format; leave out `references`")
    key = next((key for key in _IDS if row.get(key) is not None), None) if isinstance(row, dict) else None
    return question_of(record(row), text_of(row, key) if key else str(number))
