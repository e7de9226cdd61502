"""Token lists to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100
#: Follows the name of an image that is one of several of its conversation; no path holds this character.
_AMONG = "\0among"


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        tokens: ids of all of it.
        answers: first and one past the last position of each answer, its end token included; none when generating.
        images: paths of its images, in the order of their placeholders.
        dropped: turns at its end that did not fit into ``backbone.max_length``.
    """

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...] = ()
    images: tuple[str, ...] = ()
    dropped: int = 0

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before its first answer; all of them when generating."""
        return self.tokens[: self.answers[0][0]] if self.answers else self.tokens

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens that are learnt."""
        return tuple(token for start, end in self.answers for token in self.tokens[start:end])

    @property
    def learnt(self) -> int:
        """Number of the tokens that are learnt."""
        return sum(end - start for start, end in self.answers)


def images_of(examples: Sequence[Encoded]) -> list[str]:
    """The images of a batch as they are shown, in the order in which the model sees them."""
    return [name for example in examples for name in as_shown(example.images)]


def as_shown(images: Sequence[str]) -> list[str]:
    """The images of one conversation under the names by which models know whether one is alone."""
    return [f"{image}{_AMONG}" for image in images] if len(images) > 1 else list(images)


def parted(name: str) -> tuple[str, bool]:
    """The path of an image that is shown, and whether it is one of several."""
    path = name.removesuffix(_AMONG)
    return path, path != name


def padded(
    examples: Sequence[Encoded], pad: int, multiple: int = 1, extra: int = 0, last: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one length, which with ``extra`` more is a multiple of ``multiple``: padding comes first, or last.

    Returns:
        ids, attention mask and labels, each ``(B, L)`` int64; labels are IGNORE outside the answers.
    """
    longest = max(len(e.tokens) for e in examples) + extra
    length = -(-longest // multiple) * multiple - extra
    ids = np.full((len(examples), length), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    labels = np.full_like(ids, IGNORE)
    for row, e in enumerate(examples):
        offset = 0 if last else length - len(e.tokens)
        ids[row, offset : offset + len(e.tokens)] = e.tokens
        mask[row, offset : offset + len(e.tokens)] = 1
        for start, end in e.answers:
            labels[row, offset + start : offset + end] = e.tokens[start:end]
    return ids, mask, labels
