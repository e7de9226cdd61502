"""POPE's questions: ``question_id``, ``image``, ``text`` and, as the truth, ``label`` ("yes" or "no"); JSON Lines.

The published files (coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json) hold questions alone.
"""

from __future__ import annotations

from typing import Any

from fcit.data.formats import llava
from fcit.data.records import Record, TestRecord
from fcit.io import bounded

LABELS = ("yes", "no")


def is_row(row: Any) -> bool:
    """Whether a row looks like one of this format."""
    return (
        isinstance(row, dict)
        and {"label", "text", "image"} <= row.keys()
        and not {"answer", "conversations"} & row.keys()
    )


def record(row: Any) -> Record:
    """None: there is nothing to train on.

    Raises:
        ValueError: always.
    """
    raise ValueError("POPE has questions and no training records; name it under evaluation.held_out")


def question(row: Any, number: int, captioned: bool = False) -> TestRecord:
    """The question of a row.

    Raises:
        ValueError: the row cannot be used, and why.
    """
    if not isinstance(row, dict) or row.get("label") not in LABELS:
        label = row.get("label") if isinstance(row, dict) else row
        raise ValueError(f"'label' must be yes or no, got {bounded.shown(label)}")
    return llava.question({**row, "answer": row["label"]}, number)
