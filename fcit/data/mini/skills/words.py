"""Words: the lines of a cover, and those of the instruction itself."""

from __future__ import annotations

from fcit.data.mini import scenes
from fcit.data.mini.questions import Example
from fcit.data.mini.skills.wording import Rng, pick, worded

#: Words of instructions that the other skills use rarely.
VOCABULARY = sorted(
    set(
        "image picture photo figure series result according according from reaches shows happening happens "
        "tell what which who where how many much money table use pay need buy coupon dollar person people "
        "usually keep find item object class kind title author wrote cover book provide please bounding "
        "box coordinates region sentence describes described by label labeled bar value have vehicle "
        "shape color maximum minimum greater less than largest smallest add subtract spheres cubes scene "
        "objects left exist now icons shown count look rationale option letter given choices directly "
        "generate brief caption answer question using single word phrase yes no Amy Ben would these chart plot "
        "has on in is at the to a than there this cover photo dollar for one does do are".split()
    )
)


def read_line(rng: Rng) -> Example:
    """Spell one of the two lines of a cover, or its first letter."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    word = scene.lines[line]
    if rng.random() < 0.25:
        ask = ["first letter of the upper line", "first letter of the lower line"][line]
        return Example(scene, worded(rng, [f"Say the {ask}.", f"The {ask}?"]), word[0])
    name = pick(
        rng,
        [
            ["upper line", "top text", "heading", "first word", "name of this book"],
            ["lower line", "bottom text", "footer", "second word", "writer"],
        ][line],
    )
    q = worded(
        rng,
        [
            f"Read the {name}.",
            f"Spell the {name}.",
            f"What does the {name} say?",
            f"The {name}?",
            f"Copy the {name} of the cover.",
        ],
    )
    return Example(scene, q, word)


def copy_word(rng: Rng) -> Example:
    """Repeat a word of the instruction: teaches every word of the vocabulary, picture or not."""
    scene = scenes.any_scene(rng)
    word = pick(rng, VOCABULARY)
    q = worded(rng, [f"Say the word {word}.", f"Repeat: {word}.", f"{word.capitalize()}: repeat."])
    return Example(scene, q, word)
