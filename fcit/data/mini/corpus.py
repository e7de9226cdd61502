"""The pre-training data of ``fcit-tiny``: a mixture of the skills, on images that no data set uses.

Images come from layouts whose hash bucket no mini dataset uses
(:data:`fcit.data.mini.scenes.MINI_BUCKETS`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit.data.mini.questions import Example
from fcit.data.mini.scenes import MINI_BUCKETS, Scene, any_scene
from fcit.data.mini.skills import charts, choosing, pairs, things, words
from fcit.data.mini.skills.wording import Rng

SKILLS: dict[Callable[[Rng], Example], float] = {
    things.kind_by_color: 1.6,
    things.color_by_kind: 1.2,
    things.at_cell: 0.8,
    things.place_of: 2.2,
    things.total: 1.6,
    things.whole: 0.5,
    choosing.choose: 2.4,
    words.read_line: 1.2,
    things.describe: 1.4,
    things.knowledge: 1.0,
    charts.bar_value: 1.4,
    charts.bar_rank: 1.2,
    charts.bar_order: 1.8,
    things.exists: 0.3,
    pairs.price: 1.0,
    pairs.listing: 0.8,
    pairs.look_up: 1.0,
    words.copy_word: 0.3,
}
_MAKERS = list(SKILLS)
_NAMES = [maker.__name__ for maker in _MAKERS]
_BASE = np.array(list(SKILLS.values()))
#: Skills of the first phase: once a patch can be looked up by its content, the others are learnt quickly.
FIRST: list[Callable[[Rng], Example]] = [
    pairs.listing,
    pairs.listing,
    pairs.look_up,
    things.kind_by_color,
    things.color_by_kind,
    charts.bar_value,
    pairs.price,
]


def weights(emphasis: dict[str, float]) -> np.ndarray:
    """Probabilities of the skills, some of them multiplied by a factor."""
    scaled = _BASE * np.array([emphasis.get(name, 1.0) for name in _NAMES])
    return np.asarray(scaled / scaled.sum())


_DEFAULT = weights({})
#: Without the skills whose questions have several right answers: an order, a wording.
ONE_ANSWER = weights({"listing": 0, "describe": 0})


def sample(rng: Rng, first: bool = False, chances: np.ndarray = _DEFAULT) -> tuple[str, Example]:
    """One pre-training example and the name of its skill, from a layout outside the mini buckets.

    Args:
        first: only the look-ups of :data:`FIRST`.
        chances: of the skills, from :func:`weights`.
    """
    maker = FIRST[int(rng.integers(len(FIRST)))] if first else _MAKERS[int(rng.choice(len(_MAKERS), p=chances))]
    while True:
        example = maker(rng)
        if example.scene.bucket >= MINI_BUCKETS:
            example.scene.decorate(rng)
            return maker.__name__, example


def general(rng: Rng) -> Example:
    """A question as in pre-training that has exactly one right answer, on a layout of any bucket."""
    return _MAKERS[int(rng.choice(len(_MAKERS), p=ONE_ANSWER))](rng)


def sample_scene(rng: Rng) -> Scene:
    """A random scene for pre-training the vision tower, outside the mini buckets."""
    while True:
        scene = any_scene(rng)
        if scene.bucket >= MINI_BUCKETS:
            return scene.decorate(rng)
