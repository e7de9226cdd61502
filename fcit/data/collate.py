"""Token lists to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """A tokenised example: prompt and answer ids (answer empty when generating), image path."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    image: str


def pad_left(examples: Sequence[Encoded], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad on the left, as generation and training both do here.

    Returns:
        ids, attention mask and labels, each ``(B, L)`` int64; labels are IGNORE outside the answer.
    """
    length = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = np.full((len(examples), length), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    labels = np.full_like(ids, IGNORE)
    for row, e in enumerate(examples):
        tokens = e.prompt + e.answer
        ids[row, length - len(tokens) :] = tokens
        mask[row, length - len(tokens) :] = 1
        if e.answer:
            labels[row, length - len(e.answer) :] = e.answer
    return ids, mask, labels
