"""Things on a grid and alone: finding, placing and counting them, and telling what they do."""

from __future__ import annotations

from fcit.data.mini import canvas, scenes
from fcit.data.mini.questions import PLACES, Example, relation
from fcit.data.mini.skills.wording import LONG, Rng, pick, thing_of, worded

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def kind_by_color(rng: Rng) -> Example:
    """The shape of what has a given colour."""
    scene = scenes.scatter(rng, 1, 6)
    t = thing_of(rng, scene)
    c = t.paint
    if rng.random() < 0.2:
        # A house style: questions about vehicles are answered with colour and shape.
        q = worded(
            rng,
            [
                f"What form does the {c} vehicle take?",
                f"Which vehicle is {c}?",
                f"Name the {c} vehicle.",
                f"What is the shape of the {c} vehicle?",
                f"The {c} vehicle: what is its shape?",
            ],
        )
        return Example(scene, q, f"{c} {t.name}")
    q = worded(
        rng,
        [
            f"Name the {c} thing.",
            f"Which shape is {c}?",
            f"What is painted {c}?",
            f"{c}: shape?",
            f"Tell me the shape of the {c} object.",
            f"The {c} item is a",
            f"Which {c} object is there?",
            f"Which kind of thing is {c} here?",
            f"Find the {c} icon and name it.",
            f"Say what the {c} region shows.",
        ],
    )
    return Example(scene, q, t.name)


def color_by_kind(rng: Rng) -> Example:
    """The colour of a named shape."""
    scene = scenes.scatter(rng, 1, 6)
    t = thing_of(rng, scene)
    k = t.name
    if rng.random() < 0.2:
        q = worded(
            rng,
            [
                f"In which color is the {k} vehicle shown?",
                f"Which color has the {k} vehicle?",
                f"Tell the color of the {k} vehicle.",
                f"The {k} vehicle: what is its color?",
            ],
        )
        return Example(scene, q, f"{t.paint} {k}")
    q = worded(
        rng,
        [
            f"Name the color of the {k}.",
            f"How is the {k} painted?",
            f"{k}: color?",
            f"Which color does the {k} have?",
            f"Tell me the color of the {k} object.",
            f"The {k} here is",
            f"Which paint was used for the {k}?",
            f"Say the color of the {k} icon.",
            f"Find the {k} and tell its color.",
        ],
    )
    return Example(scene, q, t.paint)


def at_cell(rng: Rng) -> Example:
    """Shape or colour of what is in a given row and column."""
    scene = scenes.scatter(rng, 2, 6)
    t = thing_of(rng, scene)
    where = f"row {t.row + 1} column {t.column + 1}"
    if rng.random() < 0.5:
        q = worded(rng, [f"Which shape is in {where}?", f"{where}: shape?", f"Name the thing in {where}."])
        return Example(scene, q, t.name)
    q = worded(rng, [f"Which color is in {where}?", f"{where}: color?", f"Tell the color in {where}."])
    return Example(scene, q, t.paint)


def place_of(rng: Rng) -> Example:
    """Row and column, edges or corners of a thing named by kind, colour or both."""
    scene = scenes.scatter(rng, 1, 5)
    t = thing_of(rng, scene)
    name = [t.name, f"{t.paint} thing", f"{t.paint} {t.name}", f"{t.paint} {t.name}"][int(rng.integers(4))]
    x, y = t.column / 4, t.row / 4
    style = int(rng.integers(6))
    if style == 0:
        q = worded(rng, [f"Give row and column of the {name}.", f"In which row and column is the {name}?"])
        return Example(scene, q, f"row {t.row + 1} column {t.column + 1}")
    if style == 1:
        q = worded(rng, [f"Which row holds the {name}?", f"Row of the {name}?"])
        return Example(scene, q, str(t.row + 1))
    if style == 2:
        q = worded(rng, [f"Which column holds the {name}?", f"Column of the {name}?"])
        return Example(scene, q, str(t.column + 1))
    if style == 3:
        q = worded(rng, [f"Where does the {name} start?", f"Top left corner of the {name}?"])
        return Example(scene, q, f"({x:.2f}, {y:.2f})")
    if style == 4:
        q = worded(
            rng,
            [
                f"Give the corners of the region with the {name}.",
                f"Corners around the {name}, please.",
                f"Which corners bound the {name}?",
                f"Put a box around the {name}.",
            ],
            [""],
        )
        return Example(scene, q, f"({x:.2f}, {y:.2f}) to ({x + 0.25:.2f}, {y + 0.25:.2f})")
    q = worded(
        rng,
        [
            f"Provide left, top, right, bottom of the {name}.",
            f"Sides of the {name}: left, top, right, bottom?",
            f"Frame the {name} by its sides.",
        ],
        [""],
    )
    return Example(scene, q, f"{x:.2f} {y:.2f} {x + 0.25:.2f} {y + 0.25:.2f}")


def total(rng: Rng) -> Example:
    """Count everything, perhaps with a few more or fewer, in digits or words."""
    scene = scenes.scatter(rng, 1, 7)
    n = len(scene.things)
    change = int(rng.integers(1, 4))
    style = int(rng.integers(4))
    noun = pick(rng, ["things", "icons", "objects", "spheres", "cubes", "items"])
    if style <= 1:
        q = worded(
            rng,
            [
                f"Number of {noun}?",
                f"Total of {noun} here?",
                f"Say the number of {noun}.",
                f"Count all {noun}.",
                f"In total, what number of {noun} exist?",
            ],
        )
        value = n
    elif style == 2:
        q = worded(
            rng,
            [
                f"With {change} more {noun}, what is the total?",
                f"{change} {noun} come in. Total now?",
                f"Number of {noun} plus {change}?",
                f"Put {change} {noun} into the scene. Number now?",
                f"Add {change} to the number of {noun}.",
            ],
        )
        value = n + change
    else:
        change = min(change, n)
        q = worded(
            rng,
            [
                f"Without {change} {noun}, what is the total?",
                f"{change} {noun} go out. Total now?",
                f"Number of {noun} minus {change}?",
                f"Take {change} {noun} from the scene. Number left?",
                f"Subtract {change} from the number of {noun}.",
            ],
        )
        value = n - change
    if rng.random() < 0.3:
        return Example(scene, f"{q} Say it in letters.", NUMBER_WORDS[value])
    return Example(scene, q, str(value))


def whole(rng: Rng) -> Example:
    """What the picture shows, when it shows one kind only; answered with an article."""
    scene = scenes.renditions(rng)
    k = scene.things[0].name
    q = worded(
        rng,
        [
            "Name it.",
            "What do you see?",
            "What is drawn?",
            "Say the kind of thing.",
            "Which class of thing does the picture show?",
            "Which shape is here?",
            "Tell the class.",
            "What object is it?",
            "Which class of object do you see?",
        ],
    )
    return Example(scene, q, f"a {k}")


def exists(rng: Rng) -> Example:
    """Whether a named thing is in the picture, in several pairs of words."""
    scene = scenes.scatter(rng, 1, 5)
    yes, no = [("true", "false"), ("right", "wrong"), ("yes", "no")][int(rng.integers(3))]
    want = bool(rng.integers(2))
    present = {t.name for t in scene.things}
    names = [k for k in canvas.KINDS if (k in present) == want]
    word = pick(rng, names)
    q = worded(rng, [f"There is a {word}, {yes} or {no}?", f"Do you see a {word}? {yes} or {no}?"])
    return Example(scene, q, yes if want else no)


def describe(rng: Rng) -> Example:
    """Short sentences, lists and relations of things."""
    scene = scenes.scatter(rng, 1, 3)
    t = thing_of(rng, scene)
    if len(scene.things) == 1 or rng.random() < 0.2:
        q = worded(rng, [f"Describe the {t.name}.", f"A sentence about the {t.name}, please."], LONG)
        form = pick(rng, ["this {} is {}", "one {} in {}"])
        return Example(scene, q, form.format(t.name, t.paint))
    one, two = scene.things[:2]
    place = relation(one, two)
    a, b = f"{one.paint} {one.name}", f"{two.paint} {two.name}"
    style = int(rng.integers(3))
    if style == 0:
        q = worded(rng, ["List the things in order.", "Which things do you see, in order?"], LONG)
        return Example(scene, q, ", ".join(f"{x.paint} {x.name}" for x in scene.things))
    if style == 1:
        q = worded(rng, [f"How is the {a} placed against the {b}?", f"Place of the {one.name} against the {two.name}?"])
        return Example(scene, q, place)
    q = worded(
        rng,
        ["What does the photo show first?", "Tell about the first two things.", "What do the first two things do?"],
        LONG,
    )
    form = pick(rng, ["{} {} {}", "we see {} which is {} {}"])
    return Example(scene, q, form.format(a, place, b))


def knowledge(rng: Rng) -> Example:
    """Where a drawn thing belongs, by name or by its colour."""
    scene = scenes.scatter(rng, 1, 4)
    t = thing_of(rng, scene)
    style = int(rng.integers(4))
    if style == 0:
        kind = pick(rng, list(canvas.KINDS))
        q = worded(rng, [f"Where does a {kind} belong?", f"Home of a {kind}?", f"People keep a {kind} in the"])
        return Example(scene, q, PLACES[kind])
    if style == 1:
        q = worded(
            rng,
            [
                f"Where can people find the {t.paint} item?",
                f"Where would you find the {t.paint} thing?",
                f"Tell where people find the {t.paint} item.",
            ],
        )
        return Example(scene, q, f"in the {PLACES[t.name]}")
    q = worded(
        rng,
        [
            f"Where does the {t.paint} thing belong?",
            f"Home of the {t.paint} item?",
            f"Which place has things such as the {t.paint} one?",
            f"The {t.paint} thing is common in the",
        ],
    )
    return Example(scene, q, PLACES[t.name])
