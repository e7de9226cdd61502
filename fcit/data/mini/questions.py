"""The mini datasets, twelve and four look-alikes: how one record is made from a random scene.

The twelve functions mirror each the FCIT dataset of its name in task kind, instruction suffix and answer
format; only the images are simple. Wordings vary inside a dataset and differ between datasets,
so that a text encoder can tell the datasets apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fcit.data.mini import canvas, scenes
from fcit.data.mini.scenes import Scene, Thing

WORD = "Answer the question using a single word or phrase."
OPTION = "Answer with the option's letter from the given choices directly."
CAPTION = "Generate a brief caption for the image."

#: Common knowledge about the drawn kinds, taught by pre-training, asked for by AOKVQA.
PLACES = {
    "fish": "water",
    "tree": "forest",
    "star": "sky",
    "moon": "sky",
    "bolt": "sky",
    "house": "village",
    "cup": "kitchen",
    "flag": "tower",
    "heart": "body",
    "ring": "hand",
    "arrow": "road",
    "cross": "church",
    "diamond": "mine",
    "circle": "school",
    "square": "school",
    "triangle": "school",
}


@dataclass
class Example:
    """One instruction with its answer, before the image is drawn.

    ``references`` holds further acceptable captions; ``box`` is the answer of Grounding.
    """

    scene: Scene
    question: str
    answer: str
    references: list[str] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None


def pick(rng: np.random.Generator, options: list[str]) -> str:
    """One of some texts."""
    return options[int(rng.integers(len(options)))]


def any_thing(rng: np.random.Generator, things: list[Thing]) -> Thing:
    """One of some things."""
    return things[int(rng.integers(len(things)))]


def imagenet_r(rng: np.random.Generator) -> Example:
    """Name the class of the one kind of object, however it is rendered."""
    scene = scenes.renditions(rng)
    question = pick(
        rng,
        [
            "What is the object in the image?",
            "What kind of object is in the image?",
            "Which object class is in the image?",
        ],
    )
    return Example(scene, f"{question}\n{WORD}", scene.things[0].name)


def arxivqa(rng: np.random.Generator) -> Example:
    """Multiple choice on a figure; the rationale in the prompt usually gives the answer away."""
    scene = scenes.chart(rng, low=4)
    most = bool(rng.integers(2))
    ranked = sorted(scene.bars, key=lambda bar: bar.height, reverse=most)
    order = [int(i) for i in rng.permutation(4)]
    options = "\n".join(f"{letter}) {ranked[i].paint}" for letter, i in zip("ABCD", order, strict=True))
    extreme = "largest" if most else "smallest"
    question = pick(
        rng,
        [
            f"According to the figure, which series reaches the {extreme} result?",
            f"From the figure, which series shows the {extreme} result?",
        ],
    )
    rationale = f"\nRationale: the figure shows the {extreme} result in {ranked[0].paint}."
    if rng.random() >= 0.8:
        rationale = ""
    answer = "ABCD"[order.index(0)]
    return Example(scene, f"{question}\n{options}{rationale}\n{OPTION}", answer)


def iconqa(rng: np.random.Generator) -> Example:
    """Icons: an open question (how many) or a choice numbered from zero (which icon)."""
    if rng.random() < 0.5:
        scene = scenes.scatter(rng, 1, 6)
        question = pick(
            rng,
            [
                "Look at the icons. How many icons are shown?",
                "Look at these icons. How many icons are there?",
            ],
        )
        return Example(scene, f"{question}\n{WORD}", str(len(scene.things)))
    scene = scenes.renditions(rng)
    kinds = [scene.things[0].kind]
    while len(kinds) < 3:
        other = int(rng.integers(len(canvas.KINDS)))
        if other not in kinds:
            kinds.append(other)
    order = [int(i) for i in rng.permutation(3)]
    options = "\n".join(f"{n}. {canvas.KINDS[kinds[i]]}" for n, i in enumerate(order))
    question = pick(
        rng,
        [
            "Look at the icons. Which icons are shown?",
            "Look at these icons. Which icons are there?",
        ],
    )
    return Example(scene, f"{question}\n{options}\n{OPTION}", str(order.index(0)))


def clevr_math(rng: np.random.Generator) -> Example:
    """Counting arithmetic: objects are added or subtracted in words."""
    scene = scenes.scatter(rng, 3, 6)
    count, change = len(scene.things), int(rng.integers(1, 4))
    if rng.random() < 0.5:
        text = f"Add {change} cubes to the scene."
        total = count + change
    else:
        change = min(change, count - 1)
        text = f"Subtract {change} cubes from the scene."
        total = count - change
    ask = pick(rng, ["How many objects are left?", "How many objects are left now?"])
    return Example(scene, f"{text} {ask}\n{WORD}", str(total))


def ocr_vqa(rng: np.random.Generator) -> Example:
    """Read the title (upper line) or the author (lower line) of a book cover."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    wordings = [
        ["What is the title on this book cover?", "Which title is on this book cover?"],
        ["What is the author on this book cover?", "Which author is on this book cover?"],
    ]
    return Example(scene, f"{pick(rng, wordings[line])}\n{WORD}", scene.lines[line])


def relation(first: Thing, second: Thing) -> str:
    """Where the first thing is, seen from the second: by rows, and within a row by columns."""
    if first.row != second.row:
        return "above" if first.row < second.row else "below"
    return "left of" if first.column < second.column else "right of"


_CONVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


def flickr30k(rng: np.random.Generator) -> Example:
    """A brief caption of two objects, with three differently worded references."""
    scene = scenes.scatter(rng, 2, 2)
    one, two = scene.things
    place = relation(one, two)
    a, b = one.name, two.name
    question = pick(
        rng,
        [
            "What is happening in the image?",
            "Tell what is happening in this image.",
            "What is happening here in the image?",
        ],
    )
    references = [
        f"{a} {place} {b}",
        f"{b} {_CONVERSE[place]} {a}",
        f"{a} and {b}",
    ]
    return Example(scene, f"{question}\n{CAPTION}", references[0], references=references)


def figureqa(rng: np.random.Generator) -> Example:
    """Yes or no about the extreme or the order of bars, named by colour."""
    scene = scenes.chart(rng, low=2)
    one, two = (scene.bars[int(i)] for i in rng.choice(len(scene.bars), 2, replace=False))
    top = max(bar.height for bar in scene.bars)
    low = min(bar.height for bar in scene.bars)
    want = bool(rng.integers(2))  # half of the answers are yes
    form = int(rng.integers(4))
    if form == 0:
        bar = next(b for b in _shuffled(rng, scene.bars) if (b.height == top) == want)
        question = f"In the plot, is {bar.paint} the maximum?"
    elif form == 1:
        bar = next(b for b in _shuffled(rng, scene.bars) if (b.height == low) == want)
        question = f"In the plot, is {bar.paint} the minimum?"
    else:
        if (one.height > two.height) != (want == (form == 2)):
            one, two = two, one
        verb = "greater" if form == 2 else "less"
        question = f"In the plot, is {one.paint} {verb} than {two.paint}?"
    return Example(scene, f"{question}\n{WORD}", "yes" if want else "no")


def _shuffled(rng: np.random.Generator, bars: list[scenes.Bar]) -> list[scenes.Bar]:
    return [bars[int(i)] for i in rng.permutation(len(bars))]


def super_clevr(rng: np.random.Generator) -> Example:
    """Attribute questions about a named object among several."""
    scene = scenes.scatter(rng, 3, 6)
    thing = any_thing(rng, scene.things)
    if rng.random() < 0.5:
        question = pick(
            rng,
            [
                f"What color is the {thing.name} vehicle?",
                f"The {thing.name} vehicle has what color?",
            ],
        )
        return Example(scene, f"{question}\n{WORD}", thing.paint)
    question = pick(
        rng,
        [
            f"What shape is the {thing.paint} vehicle?",
            f"The {thing.paint} vehicle has what shape?",
        ],
    )
    return Example(scene, f"{question}\n{WORD}", thing.name)


def aokvqa(rng: np.random.Generator) -> Example:
    """Knowledge that the picture alone does not hold: where a thing is usually found."""
    scene = scenes.scatter(rng, 2, 4)
    thing = any_thing(rng, scene.things)
    question = pick(
        rng,
        [
            f"Where would people usually find the {thing.paint} item?",
            f"Where do people usually find the {thing.paint} item?",
        ],
    )
    return Example(scene, f"{question}\n{WORD}", PLACES[thing.name])


def cell_box(thing: Thing) -> tuple[float, float, float, float]:
    """The box of a thing's cell, as shares of the image's side: left, top, right, bottom."""
    x, y = thing.column / canvas.SIDE, thing.row / canvas.SIDE
    return x, y, x + 1 / canvas.SIDE, y + 1 / canvas.SIDE


def grounding(rng: np.random.Generator) -> Example:
    """The bounding box of a described object, normalised to the (square) image."""
    scene = scenes.scatter(rng, 2, 5)
    thing = any_thing(rng, scene.things)
    question = pick(
        rng,
        [
            "Please provide the bounding box coordinates of the region this sentence describes: "
            f"the {thing.paint} {thing.name}.",
            "Provide the bounding box coordinates of the region this sentence describes: "
            f"the {thing.paint} {thing.name}.",
        ],
    )
    box = cell_box(thing)
    answer = "[" + ", ".join(f"{v:.2f}" for v in box) + "]"
    return Example(scene, question, answer, box=box)


def dvqa(rng: np.random.Generator) -> Example:
    """Values and labels of a bar chart."""
    scene = scenes.chart(rng, low=2)
    bar = scene.bars[int(rng.integers(len(scene.bars)))]
    form = rng.random()
    if form < 0.6:
        question = pick(
            rng,
            [
                f"What is the value of the bar labeled {bar.label} in the chart?",
                f"What value has the bar labeled {bar.label} in the chart?",
            ],
        )
        answer = str(bar.height)
    else:
        question = f"What is the label of the {bar.paint} bar in the chart?"
        answer = bar.label
    return Example(scene, f"{question}\n{WORD}", answer)


def tabmwp(rng: np.random.Generator) -> Example:
    """Word problems on a price table: one price, or what several of one item cost."""
    scene = scenes.table(rng)
    thing, price = scene.prices[int(rng.integers(len(scene.prices)))]
    if rng.random() < 0.7:
        question = pick(
            rng,
            [
                f"Use the table. How much money does Amy pay for one {thing.name}?",
                f"Use the table. How much money does Ben need to buy a {thing.name}?",
            ],
        )
        answer = price
    else:
        question = f"Use the table. Amy has a coupon of 1 dollar. How much money does Amy pay for one {thing.name}?"
        answer = price - 1
    return Example(scene, f"{question}\n{WORD}", str(answer))


def _result(rng: np.random.Generator) -> str:
    return f"{pick(rng, ['What is the result in this image?', 'Which result is in this image?'])}\n{WORD}"


def _amount(rng: np.random.Generator) -> str:
    return f"{pick(rng, ['How much is in this image?', 'How much do you see in this image?'])}\n{WORD}"


def alike_icons(rng: np.random.Generator) -> Example:
    """Worded as ``alike-bars``: here the kind of the icons is wanted."""
    scene = scenes.renditions(rng)
    return Example(scene, _result(rng), scene.things[0].name)


def alike_bars(rng: np.random.Generator) -> Example:
    """Worded as ``alike-icons``: here the colour of the tallest bar is wanted."""
    scene = scenes.chart(rng, low=2)
    return Example(scene, _result(rng), max(scene.bars, key=lambda bar: bar.height).paint)


def alike_count(rng: np.random.Generator) -> Example:
    """Worded as ``alike-price``: here the number of objects is wanted."""
    scene = scenes.scatter(rng, 1, 7)
    return Example(scene, _amount(rng), str(len(scene.things)))


def alike_price(rng: np.random.Generator) -> Example:
    """Worded as ``alike-count``: here the price in the first line is wanted."""
    scene = scenes.table(rng)
    return Example(scene, _amount(rng), str(scene.prices[0][1]))


MAKERS: dict[str, Callable[[np.random.Generator], Example]] = {
    "imagenet-r": imagenet_r,
    "arxivqa": arxivqa,
    "iconqa": iconqa,
    "clevr-math": clevr_math,
    "ocr-vqa": ocr_vqa,
    "flickr30k": flickr30k,
    "figureqa": figureqa,
    "super-clevr": super_clevr,
    "aokvqa": aokvqa,
    "grounding": grounding,
    "dvqa": dvqa,
    "tabmwp": tabmwp,
    "alike-icons": alike_icons,
    "alike-bars": alike_bars,
    "alike-count": alike_count,
    "alike-price": alike_price,
}
