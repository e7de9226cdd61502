"""Every mini data set by name: what makes the examples of its splits, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcit.data.mini import corpus
from fcit.data.mini.abilities import ABILITIES
from fcit.data.mini.questions import MAKERS, Example
from fcit.data.mini.reworded import REWORDED
from fcit.data.mini.scenes import BUCKETS, MINI_BUCKETS


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes:
        style: one of :data:`fcit.data.mini.drawing.STYLES`.
        layouts: the hash buckets that their layouts belong to.
    """

    maker: Callable[[np.random.Generator], Example]
    style: str = "plain"
    layouts: range = range(MINI_BUCKETS)


#: Data set -> what it is learnt from, and what it is tested on (splits ``val`` and ``test``).
SOURCES: dict[str, tuple[Source, Source]] = (
    {name: (Source(maker), Source(maker)) for name, maker in MAKERS.items()}
    | {name: (Source(maker, style), Source(maker, style)) for name, (maker, style) in REWORDED.items()}
    | {name: (Source(learnt), Source(tested, style)) for name, (learnt, tested, style) in ABILITIES.items()}
)


#: What fcit-tiny was pre-trained on, asked again: questions alone, of which nothing is trained.
GENERAL = "mini-general"
_GENERAL = Source(corpus.general, layouts=range(MINI_BUCKETS, BUCKETS))


def source_of(name: str, split: str) -> Source:
    """Where the examples of a split come from.

    Raises:
        KeyError: no mini data set has this name.
    """
    if name == GENERAL:
        return _GENERAL
    learnt, tested = SOURCES[name]
    return learnt if split == "train" else tested
