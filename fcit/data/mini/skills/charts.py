"""Bars: reading, ranking and comparing them."""

from __future__ import annotations

from fcit.data.mini import scenes
from fcit.data.mini.questions import Example
from fcit.data.mini.skills.wording import Rng, pick, worded


def bar_value(rng: Rng) -> Example:
    """Height, label or colour of a bar, one from the other."""
    scene = scenes.chart(rng, 1)
    b = scene.bars[int(rng.integers(len(scene.bars)))]
    style = int(rng.integers(4))
    if style == 0:
        q = worded(
            rng,
            [
                f"Height of bar {b.label}?",
                f"How high is {b.label}?",
                f"Read the value over {b.label}.",
                f"What number does {b.label} have?",
            ],
        )
        return Example(scene, q, str(b.height))
    if style == 1:
        q = worded(rng, [f"Height of the {b.paint} bar?", f"How high is {b.paint}?", f"Value of {b.paint}?"])
        return Example(scene, q, str(b.height))
    if style == 2:
        q = worded(
            rng,
            [
                f"Which letter is under {b.paint}?",
                f"How is the {b.paint} one labeled?",
                f"Letter below the {b.paint} bar?",
            ],
        )
        return Example(scene, q, b.label)
    q = worded(rng, [f"Which color is bar {b.label}?", f"Color over the label {b.label}?"])
    return Example(scene, q, b.paint)


def bar_rank(rng: Rng) -> Example:
    """Colour or label of the tallest or lowest bar."""
    scene = scenes.chart(rng, 2)
    most = bool(rng.integers(2))
    bar = sorted(scene.bars, key=lambda b: b.height)[-1 if most else 0]
    word = pick(
        rng, ["tallest", "highest", "largest", "maximum"] if most else ["lowest", "shortest", "smallest", "minimum"]
    )
    if rng.random() < 0.6:
        q = worded(
            rng,
            [
                f"Color of the {word} bar?",
                f"Which color is {word}?",
                f"Name the {word} one by color.",
                f"Which series has the {word} result in the figure?",
            ],
        )
        return Example(scene, q, bar.paint)
    q = worded(rng, [f"Letter of the {word} bar?", f"Which letter is {word}?"])
    return Example(scene, q, bar.label)


def bar_order(rng: Rng) -> Example:
    """Compare two bars; or judge a statement in several pairs of words."""
    scene = scenes.chart(rng, 2)
    one, two = (scene.bars[int(i)] for i in rng.choice(len(scene.bars), 2, replace=False))
    style = int(rng.integers(3))
    if style == 0:
        more = bool(rng.integers(2))
        word = pick(rng, ["greater", "higher", "taller"] if more else ["less", "lower", "shorter"])
        q = worded(
            rng, [f"Which is {word}, {one.paint} or {two.paint}?", f"{one.paint} or {two.paint}: which is {word}?"]
        )
        return Example(scene, q, (one if (one.height > two.height) == more else two).paint)
    yes, no = [("true", "false"), ("right", "wrong"), ("yes", "no")][int(rng.integers(3))]
    want = bool(rng.integers(2))
    tail = f"{yes} or {no}?"
    more = bool(rng.integers(2))
    if style == 1:
        word = pick(rng, ["greater", "higher", "taller"] if more else ["less", "lower", "shorter"])
        if (one.height > two.height) != (want == more):
            one, two = two, one
        q = worded(
            rng, [f"{one.paint} is {word} than {two.paint}, {tail}", f"{one.paint} {word} than {two.paint}: {tail}"]
        )
    else:
        word = pick(rng, ["maximum", "tallest", "largest"] if more else ["minimum", "lowest", "smallest"])
        best = sorted(scene.bars, key=lambda b: b.height)[-1 if more else 0]
        others = [b for b in scene.bars if b is not best]
        bar = best if want else others[int(rng.integers(len(others)))]
        q = worded(rng, [f"{bar.paint} is the {word}, {tail}", f"The {word} one is {bar.paint}: {tail}"])
    return Example(scene, q, yes if want else no)
