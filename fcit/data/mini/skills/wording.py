"""How a skill words its questions, and what it asks about."""

from __future__ import annotations

import numpy as np

from fcit.data.mini.scenes import Scene, Thing

Rng = np.random.Generator

# Instruction lines shared with the datasets appear on *other* questions too.
SHORT = [
    "Answer the question using a single word or phrase.",
    "Answer with one word.",
    "Use a single word.",
    "Be brief.",
    "",
    "",
]
OPTION = [
    "Answer with the option's letter from the given choices directly.",
    "Reply with the letter of the right option.",
    "Pick one of the given choices.",
    "",
]
LONG = ["Generate a brief caption for the image.", "Write one sentence.", "Describe it.", ""]


def pick(rng: Rng, options: list[str]) -> str:
    """One of them."""
    return options[int(rng.integers(len(options)))]


def worded(rng: Rng, questions: list[str], suffixes: list[str] = SHORT) -> str:
    """One of the questions, with an instruction line of :data:`SHORT` or another list below it."""
    suffix = pick(rng, suffixes)
    question = pick(rng, questions)
    return f"{question}\n{suffix}" if suffix else question


def thing_of(rng: Rng, scene: Scene) -> Thing:
    """One of a scene's things."""
    return scene.things[int(rng.integers(len(scene.things)))]
