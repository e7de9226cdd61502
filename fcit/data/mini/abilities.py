"""Four abilities that are learnt from one source and tested on another: OCR, mathematics, perception, GUI.

As in the ability part of MLLM-CL, training and test questions of an ability differ in wording, in what is drawn and in
how: whoever learns the wording, or the look of one source, fails on the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit.data.mini import scenes
from fcit.data.mini.questions import WORD, Example, any_thing, cell_box, pick

Rng = np.random.Generator


def ocr(rng: Rng) -> Example:
    """Training: title or author of a cover."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    name = ("title", "author")[line]
    ask = pick(
        rng,
        [
            f"Which {name} does this cover show?",
            f"Tell the {name} shown on this cover.",
            f"Which letters are the {name} on this cover?",
        ],
    )
    return Example(scene, f"{ask}\n{WORD}", scene.lines[line])


def ocr_test(rng: Rng) -> Example:
    """Test: the upper or lower text."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    ask = f"Which letters are in the {('upper', 'lower')[line]} line on this cover?"
    return Example(scene, f"{ask}\nUse a single word.", scene.lines[line])


def math(rng: Rng) -> Example:
    """Training: things of many kinds, and some more or less."""
    scene = scenes.scatter(rng, 3, 5)
    count, change = len(scene.things), int(rng.integers(1, 3))
    more = bool(rng.integers(2))
    verb = "Add" if more else "Subtract"
    ask = pick(
        rng,
        [
            f"{verb} {change}. How many objects are there now?",
            f"{verb} {change}. How many things do you count now?",
            f"{verb} {change}. What is the number of all objects here?",
            f"{verb} {change} and tell the total of the objects.",
        ],
    )
    return Example(scene, f"{ask}\n{WORD}", str(count + change if more else count - change))


def math_test(rng: Rng) -> Example:
    """Test: things of one kind."""
    scene = scenes.renditions(rng, 3, 5)
    count, change = len(scene.things), int(rng.integers(1, 3))
    more = bool(rng.integers(2))
    ask = f"{'Add' if more else 'Subtract'} {change}. What is the total of these things now?"
    return Example(scene, f"{ask}\nUse a single word.", str(count + change if more else count - change))


def vp(rng: Rng) -> Example:
    """Training: how many things of many kinds there are."""
    scene = scenes.scatter(rng, 1, 5)
    ask = pick(
        rng,
        [
            "How many objects exist in this scene?",
            "How many icons does this image have?",
            "How many of these things do you count?",
            "What is the number of all objects shown?",
        ],
    )
    return Example(scene, f"{ask}\n{WORD}", str(len(scene.things)))


def vp_test(rng: Rng) -> Example:
    """Test: how many of one kind."""
    scene = scenes.renditions(rng)
    ask = "How many things does this picture have?"
    return Example(scene, f"{ask}\nUse a single word.", str(len(scene.things)))


def gui(rng: Rng) -> Example:
    """Training: the box of what has a colour."""
    scene = scenes.scatter(rng, 2, 5)
    thing = any_thing(rng, scene.things)
    box = cell_box(thing)
    ask = pick(
        rng,
        [
            f"Where is the {thing.paint} icon? Provide the coordinates of its box.",
            f"Provide the bounding box of the {thing.paint} icon.",
            f"Find the {thing.paint} icon. Which are its bounding box coordinates?",
        ],
    )
    return Example(scene, ask, "[" + ", ".join(f"{v:.2f}" for v in box) + "]", box=box)


def gui_test(rng: Rng) -> Example:
    """Test: the box of what has a shape."""
    scene = scenes.scatter(rng, 2, 5)
    thing = any_thing(rng, scene.things)
    box = cell_box(thing)
    ask = f"Where is the {thing.name}? Give the bounding box coordinates of this icon."
    return Example(scene, ask, "[" + ", ".join(f"{v:.2f}" for v in box) + "]", box=box)


#: Data set -> what makes an example to learn from, what makes one to be tested on, and the style of test pictures.
ABILITIES: dict[str, tuple[Callable[[Rng], Example], Callable[[Rng], Example], str]] = {
    "ability-ocr": (ocr, ocr_test, "dotted"),
    "ability-math": (math, math_test, "faded"),
    "ability-vp": (vp, vp_test, "dusk"),
    "ability-gui": (gui, gui_test, "grid"),
}
