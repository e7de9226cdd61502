"""What of a text from a file is used: the one place where an instruction is cleaned."""

from __future__ import annotations

import math
from typing import Any

from fcit.io import bounded

IMAGE_TAG = "<image>"
MAX_TEXT = 20_000  # characters of an instruction or answer; what a model reads at once is far less


def without_tags(text: str) -> tuple[str, int]:
    """A question without image tags, and how many there were.

    Where there was one, blanks at both ends go too: the tag is moved to the front of the turn that holds it, as the
    public trainer moves it.

    Raises:
        ValueError: what is left makes a tag again.
    """
    count = text.count(IMAGE_TAG)
    if not count:
        return text, 0
    rest = text.replace(IMAGE_TAG, "").strip()
    if IMAGE_TAG in rest:
        raise ValueError(f"an image tag stands inside another: {text[:80]!r}")
    return rest, count


def whole(text: str, key: str) -> str:
    """A text that can be tokenised and shown.

    Raises:
        ValueError: too long, or half a surrogate pair is in it.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{key!r} has {len(text):,} characters, more than {MAX_TEXT:,}")
    if not bounded.is_text(text):
        raise ValueError(f"{key!r} holds half a surrogate pair, which is no text: {text[:80]!r}")
    return text


def text_of(row: Any, key: str) -> str:
    """The text under a key; a number is written out.

    Raises:
        ValueError: neither is there.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {bounded.shown(value)}")
    return whole(value, key)
