"""Docstrings as the reference shows them: an extension of mkdocstrings.

They are written for reading in the code: roles like ``:class:`fcit.errors.RunError``` become plain code, and the
section of an example becomes one whose lines are shown as code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainDocstrings(griffe.Extension):
    """Changes every docstring once, when it has been read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
