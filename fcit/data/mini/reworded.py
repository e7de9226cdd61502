"""The skills of the twelve mini data sets in other words, other answer formats and other pictures: twelve more tasks.

With the twelve of :mod:`fcit.data.mini.questions` they make the 24 tasks of ``fcit-mini-long``. Only words are used
that ``fcit-tiny`` has met, in sentences it has not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit.data.mini import scenes
from fcit.data.mini.questions import PLACES, Example, any_thing, pick, relation

Rng = np.random.Generator

_INDEX = "WXYZ"


def kinds(rng: Rng) -> Example:
    """The one kind of things (as ImageNet-R)."""
    scene = scenes.renditions(rng)
    ask = pick(rng, ["These are objects of one kind. Say the kind.", "These are objects of which kind?"])
    return Example(scene, f"{ask}\nReply with one word.", scene.things[0].name)


def series(rng: Rng) -> Example:
    """The tallest or lowest of four bars, by the letter of an option (as ArxivQA, without a rationale)."""
    scene = scenes.chart(rng, low=4)
    most = bool(rng.integers(2))
    best = sorted(scene.bars, key=lambda bar: bar.height, reverse=most)[0]
    order = [int(i) for i in rng.permutation(4)]
    options = "\n".join(f"{letter}: {scene.bars[i].paint}" for letter, i in zip(_INDEX, order, strict=True))
    answer = _INDEX[order.index(scene.bars.index(best))]
    ask = f"Pick the {'tallest' if most else 'lowest'} series of this chart."
    return Example(scene, f"{ask}\n{options}\nAnswer with the letter of one option.", answer)


def icons(rng: Rng) -> Example:
    """How many things there are (as IconQA's open questions)."""
    scene = scenes.scatter(rng, 1, 6)
    ask = pick(rng, ["Look at this picture and count all its icons.", "Count all the icons of this picture."])
    return Example(scene, f"{ask}\nGive the number.", str(len(scene.things)))


def sums(rng: Rng) -> Example:
    """Their number and some more or less (as CLEVR-Math)."""
    scene = scenes.scatter(rng, 3, 6)
    count, change = len(scene.things), int(rng.integers(1, 3))
    if rng.random() < 0.5:
        ask, total = f"Add {change} spheres to the objects. What is the total now?", count + change
    else:
        ask, total = f"Subtract {change} spheres from the objects. What is the total now?", count - change
    return Example(scene, f"{ask}\nGive the total.", str(total))


def covers(rng: Rng) -> Example:
    """One of the two lines of a cover (as OCR-VQA)."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    which = ("upper", "lower")[line]
    ask = pick(rng, [f"Which letters are in the {which} line?", f"Which letters does the {which} line have?"])
    return Example(scene, f"{ask}\nSpell it.", scene.lines[line])


def photos(rng: Rng) -> Example:
    """A sentence about two things and their colours, with three references (as Flickr30k)."""
    scene = scenes.scatter(rng, 2, 2)
    one, two = scene.things
    place, back = relation(one, two), relation(two, one)
    ask = pick(rng, ["Write about the two things in this photo.", "Tell about the two things in this photo."])
    a, b = f"{one.paint} {one.name}", f"{two.paint} {two.name}"
    references = [f"{a} {place} {b}", f"{b} {back} {a}", f"{a} and {b}"]
    return Example(scene, f"{ask}\nUse one sentence.", references[0], references=references)


def truths(rng: Rng) -> Example:
    """Whether a statement about two bars is true (as FigureQA)."""
    scene = scenes.chart(rng, low=2)
    one, two = (scene.bars[int(i)] for i in rng.choice(len(scene.bars), 2, replace=False))
    want, more = bool(rng.integers(2)), bool(rng.integers(2))
    if (one.height > two.height) != (want == more):
        one, two = two, one
    ask = f"In this chart {one.paint} is {'taller' if more else 'shorter'} than {two.paint}."
    return Example(scene, f"{ask}\nSay true or false.", "true" if want else "false")


def paints(rng: Rng) -> Example:
    """The colour of a named thing, or what has a colour (as super-CLEVR)."""
    scene = scenes.scatter(rng, 3, 6)
    thing = any_thing(rng, scene.things)
    if rng.random() < 0.5:
        return Example(scene, f"In which color is the {thing.name} painted here?\nUse one word.", thing.paint)
    return Example(scene, f"Which object is painted {thing.paint} here?\nUse one word.", thing.name)


def homes(rng: Rng) -> Example:
    """Where a thing is usually found (as AOKVQA)."""
    scene = scenes.scatter(rng, 2, 4)
    thing = any_thing(rng, scene.things)
    ask = pick(rng, [f"People look for a {thing.paint} thing.", f"A person would look for the {thing.paint} thing."])
    return Example(scene, f"{ask} Which place is right?\nName the place.", PLACES[thing.name])


def cells(rng: Rng) -> Example:
    """Row and column of a described thing (as Grounding)."""
    scene = scenes.scatter(rng, 2, 5)
    thing = any_thing(rng, scene.things)
    ask = f"Find the {thing.paint} {thing.name} in this picture."
    return Example(scene, f"{ask}\nGive row and column.", f"row {thing.row + 1} column {thing.column + 1}")


def values(rng: Rng) -> Example:
    """The height of a bar, by its colour (as DVQA)."""
    scene = scenes.chart(rng, low=2)
    bar = scene.bars[int(rng.integers(len(scene.bars)))]
    ask = pick(
        rng, [f"How high is the {bar.paint} bar of the plot?", f"How high is it, the {bar.paint} bar of the plot?"]
    )
    return Example(scene, f"{ask}\nGive the value.", str(bar.height))


def bills(rng: Rng) -> Example:
    """What one thing costs, with or without a coupon (as TabMWP)."""
    scene = scenes.table(rng)
    thing, price = scene.prices[int(rng.integers(len(scene.prices)))]
    if rng.random() < 0.7:
        ask, answer = f"Ben would buy one {thing.name}. Which price does the list show?", price
    else:
        ask, answer = f"Ben would buy one {thing.name} with a coupon of 1 dollar. Which price is it now?", price - 1
    return Example(scene, f"{ask}\nGive the price.", str(answer))


#: Data set -> what makes an example, and the style of its pictures (:data:`fcit.data.mini.drawing.STYLES`).
REWORDED: dict[str, tuple[Callable[[Rng], Example], str]] = {
    "long-kinds": (kinds, "dusk"),
    "long-series": (series, "grid"),
    "long-icons": (icons, "dotted"),
    "long-sums": (sums, "framed"),
    "long-covers": (covers, "faded"),
    "long-photos": (photos, "framed"),
    "long-truths": (truths, "dotted"),
    "long-paints": (paints, "grid"),
    "long-homes": (homes, "faded"),
    "long-cells": (cells, "dusk"),
    "long-values": (values, "framed"),
    "long-bills": (bills, "dotted"),
}
