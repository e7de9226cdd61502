"""The skills ``fcit-tiny`` is taught before any tuning, one function each: a scene, a question, an answer.

They are the abilities that the twelve mini data sets test (finding, reading, counting, comparing,
choosing, placing), in other words and other answer formats: zero-shot scores stay low although the
knowledge is learnt, as with a real instruction-tuned model. Some answers have a house style (an
article, colour before shape) that the data sets do not use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit.data.mini import canvas, scenes
from fcit.data.mini.questions import PLACES, Example, relation
from fcit.data.mini.scenes import Scene, Thing

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

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

Rng = np.random.Generator


def _pick(rng: Rng, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _ask(rng: Rng, questions: list[str], suffixes: list[str] = SHORT) -> str:
    suffix = _pick(rng, suffixes)
    question = _pick(rng, questions)
    return f"{question}\n{suffix}" if suffix else question


def _thing(rng: Rng, scene: Scene) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


_SCENES: list[Callable[[Rng], Scene]] = [
    scenes.scatter,
    scenes.renditions,
    scenes.cover,
    scenes.chart,
    scenes.table,
]


def any_scene(rng: Rng) -> Scene:
    """A scene of any sort, for skills that need no particular one."""
    return _SCENES[int(rng.integers(len(_SCENES)))](rng)


def kind_by_color(rng: Rng) -> Example:
    """The shape of what has a given colour."""
    scene = scenes.scatter(rng, 1, 6)
    t = _thing(rng, scene)
    c = t.paint
    if rng.random() < 0.2:
        # A house style: questions about vehicles are answered with colour and shape.
        q = _ask(
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
    q = _ask(
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
    t = _thing(rng, scene)
    k = t.name
    if rng.random() < 0.2:
        q = _ask(
            rng,
            [
                f"In which color is the {k} vehicle shown?",
                f"Which color has the {k} vehicle?",
                f"Tell the color of the {k} vehicle.",
                f"The {k} vehicle: what is its color?",
            ],
        )
        return Example(scene, q, f"{t.paint} {k}")
    q = _ask(
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
    t = _thing(rng, scene)
    where = f"row {t.row + 1} column {t.column + 1}"
    if rng.random() < 0.5:
        q = _ask(rng, [f"Which shape is in {where}?", f"{where}: shape?", f"Name the thing in {where}."])
        return Example(scene, q, t.name)
    q = _ask(rng, [f"Which color is in {where}?", f"{where}: color?", f"Tell the color in {where}."])
    return Example(scene, q, t.paint)


def place_of(rng: Rng) -> Example:
    """Row and column, edges or corners of a thing named by kind, colour or both."""
    scene = scenes.scatter(rng, 1, 5)
    t = _thing(rng, scene)
    name = [t.name, f"{t.paint} thing", f"{t.paint} {t.name}", f"{t.paint} {t.name}"][int(rng.integers(4))]
    x, y = t.column / 4, t.row / 4
    style = int(rng.integers(6))
    if style == 0:
        q = _ask(rng, [f"Give row and column of the {name}.", f"In which row and column is the {name}?"])
        return Example(scene, q, f"row {t.row + 1} column {t.column + 1}")
    if style == 1:
        q = _ask(rng, [f"Which row holds the {name}?", f"Row of the {name}?"])
        return Example(scene, q, str(t.row + 1))
    if style == 2:
        q = _ask(rng, [f"Which column holds the {name}?", f"Column of the {name}?"])
        return Example(scene, q, str(t.column + 1))
    if style == 3:
        q = _ask(rng, [f"Where does the {name} start?", f"Top left corner of the {name}?"])
        return Example(scene, q, f"({x:.2f}, {y:.2f})")
    if style == 4:
        q = _ask(
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
    q = _ask(
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
    noun = _pick(rng, ["things", "icons", "objects", "spheres", "cubes", "items"])
    if style <= 1:
        q = _ask(
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
        q = _ask(
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
        q = _ask(
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
    q = _ask(
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


_BRACKETS = [
    ("{}: {}", "{}", ", "),
    ("({}) {}", "{}", " "),
    ("{} = {}", "{}", "\n"),
    ("[{}] {}", "{}", "\n"),
    ("{}. {}", "{}", ", "),
    ("{}) {}", "{}", ", "),
]
_INDEX = ["ABCD", "1234", "0123", "XYZW", "abcd"]


def choose(rng: Rng) -> Example:
    """Pick an option: by the picture, or by a hint in the text."""
    pattern, reply, glue = _BRACKETS[int(rng.integers(len(_BRACKETS)))]
    index = _INDEX[int(rng.integers(len(_INDEX)))]
    size = int(rng.integers(2, 5))
    style = int(rng.integers(4))
    if style == 0:
        scene = scenes.renditions(rng)
        right, pool = scene.things[0].name, list(canvas.KINDS)
        ask = _pick(rng, ["Which of these is in the picture?", "What do you see?", "Choose the kind of thing."])
    elif style == 1:
        scene = scenes.scatter(rng, 1, 5)
        t = _thing(rng, scene)
        right, pool = t.paint, list(canvas.COLOR_NAMES)
        ask = _pick(rng, [f"Choose the color of the {t.name}.", f"The color of the {t.name} is"])
    elif style == 2:
        scene = scenes.chart(rng, 2)
        most = bool(rng.integers(2))
        bar = sorted(scene.bars, key=lambda b: b.height)[-1 if most else 0]
        right, pool = bar.paint, list(canvas.COLOR_NAMES)
        word = _pick(rng, ["tallest", "highest", "largest"] if most else ["lowest", "shortest", "smallest"])
        ask = _pick(rng, [f"Choose the {word} bar.", f"Which bar is {word}?"])
    else:
        scene = any_scene(rng)
        pool = list(canvas.COLOR_NAMES) if rng.random() < 0.5 else list(canvas.KINDS)
        right = _pick(rng, pool)
        ask = _pick(rng, [f"Choose {right}.", f"Find {right} in the list.", f"The right one is {right}."])
    others = [w for w in rng.permutation(pool).tolist() if w != right]
    words = [right, *others[: size - 1]]
    if style == 3 and rng.random() < 0.5:
        # The hint may come after the options.
        hint, ask = ask, _pick(rng, ["Choose.", "Pick one of these.", "Which series is it?"])
    else:
        hint = ""
    if style == 2:
        words = [right, *[b.paint for b in scene.bars if b.paint != right][: size - 1]]
    order = [int(i) for i in rng.permutation(len(words))]
    options = glue.join(pattern.format(index[p], words[i]) for p, i in enumerate(order))
    suffix = _pick(rng, OPTION)
    q = "\n".join(part for part in (ask, options, hint, suffix) if part)
    return Example(scene, q, reply.format(index[order.index(0)]))


def read_line(rng: Rng) -> Example:
    """Spell one of the two lines of a cover, or its first letter."""
    scene = scenes.cover(rng)
    line = int(rng.integers(2))
    word = scene.lines[line]
    if rng.random() < 0.25:
        ask = ["first letter of the upper line", "first letter of the lower line"][line]
        return Example(scene, _ask(rng, [f"Say the {ask}.", f"The {ask}?"]), word[0])
    name = _pick(
        rng,
        [
            ["upper line", "top text", "heading", "first word", "name of this book"],
            ["lower line", "bottom text", "footer", "second word", "writer"],
        ][line],
    )
    q = _ask(
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


def describe(rng: Rng) -> Example:
    """Short sentences, lists and relations of things."""
    scene = scenes.scatter(rng, 1, 3)
    t = _thing(rng, scene)
    if len(scene.things) == 1 or rng.random() < 0.2:
        q = _ask(rng, [f"Describe the {t.name}.", f"A sentence about the {t.name}, please."], LONG)
        form = _pick(rng, ["this {} is {}", "one {} in {}"])
        return Example(scene, q, form.format(t.name, t.paint))
    one, two = scene.things[:2]
    place = relation(one, two)
    a, b = f"{one.paint} {one.name}", f"{two.paint} {two.name}"
    style = int(rng.integers(3))
    if style == 0:
        q = _ask(rng, ["List the things in order.", "Which things do you see, in order?"], LONG)
        return Example(scene, q, ", ".join(f"{x.paint} {x.name}" for x in scene.things))
    if style == 1:
        q = _ask(rng, [f"How is the {a} placed against the {b}?", f"Place of the {one.name} against the {two.name}?"])
        return Example(scene, q, place)
    q = _ask(
        rng,
        ["What does the photo show first?", "Tell about the first two things.", "What do the first two things do?"],
        LONG,
    )
    form = _pick(rng, ["{} {} {}", "we see {} which is {} {}"])
    return Example(scene, q, form.format(a, place, b))


def knowledge(rng: Rng) -> Example:
    """Where a drawn thing belongs, by name or by its colour."""
    scene = scenes.scatter(rng, 1, 4)
    t = _thing(rng, scene)
    style = int(rng.integers(4))
    if style == 0:
        kind = _pick(rng, list(canvas.KINDS))
        q = _ask(rng, [f"Where does a {kind} belong?", f"Home of a {kind}?", f"People keep a {kind} in the"])
        return Example(scene, q, PLACES[kind])
    if style == 1:
        q = _ask(
            rng,
            [
                f"Where can people find the {t.paint} item?",
                f"Where would you find the {t.paint} thing?",
                f"Tell where people find the {t.paint} item.",
            ],
        )
        return Example(scene, q, f"in the {PLACES[t.name]}")
    q = _ask(
        rng,
        [
            f"Where does the {t.paint} thing belong?",
            f"Home of the {t.paint} item?",
            f"Which place has things such as the {t.paint} one?",
            f"The {t.paint} thing is common in the",
        ],
    )
    return Example(scene, q, PLACES[t.name])


def bar_value(rng: Rng) -> Example:
    """Height, label or colour of a bar, one from the other."""
    scene = scenes.chart(rng, 1)
    b = scene.bars[int(rng.integers(len(scene.bars)))]
    style = int(rng.integers(4))
    if style == 0:
        q = _ask(
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
        q = _ask(rng, [f"Height of the {b.paint} bar?", f"How high is {b.paint}?", f"Value of {b.paint}?"])
        return Example(scene, q, str(b.height))
    if style == 2:
        q = _ask(
            rng,
            [
                f"Which letter is under {b.paint}?",
                f"How is the {b.paint} one labeled?",
                f"Letter below the {b.paint} bar?",
            ],
        )
        return Example(scene, q, b.label)
    q = _ask(rng, [f"Which color is bar {b.label}?", f"Color over the label {b.label}?"])
    return Example(scene, q, b.paint)


def bar_rank(rng: Rng) -> Example:
    """Colour or label of the tallest or lowest bar."""
    scene = scenes.chart(rng, 2)
    most = bool(rng.integers(2))
    bar = sorted(scene.bars, key=lambda b: b.height)[-1 if most else 0]
    word = _pick(
        rng, ["tallest", "highest", "largest", "maximum"] if most else ["lowest", "shortest", "smallest", "minimum"]
    )
    if rng.random() < 0.6:
        q = _ask(
            rng,
            [
                f"Color of the {word} bar?",
                f"Which color is {word}?",
                f"Name the {word} one by color.",
                f"Which series has the {word} result in the figure?",
            ],
        )
        return Example(scene, q, bar.paint)
    q = _ask(rng, [f"Letter of the {word} bar?", f"Which letter is {word}?"])
    return Example(scene, q, bar.label)


def bar_order(rng: Rng) -> Example:
    """Compare two bars; or judge a statement in several pairs of words."""
    scene = scenes.chart(rng, 2)
    one, two = (scene.bars[int(i)] for i in rng.choice(len(scene.bars), 2, replace=False))
    style = int(rng.integers(3))
    if style == 0:
        more = bool(rng.integers(2))
        word = _pick(rng, ["greater", "higher", "taller"] if more else ["less", "lower", "shorter"])
        q = _ask(
            rng, [f"Which is {word}, {one.paint} or {two.paint}?", f"{one.paint} or {two.paint}: which is {word}?"]
        )
        return Example(scene, q, (one if (one.height > two.height) == more else two).paint)
    yes, no = [("true", "false"), ("right", "wrong"), ("yes", "no")][int(rng.integers(3))]
    want = bool(rng.integers(2))
    tail = f"{yes} or {no}?"
    more = bool(rng.integers(2))
    if style == 1:
        word = _pick(rng, ["greater", "higher", "taller"] if more else ["less", "lower", "shorter"])
        if (one.height > two.height) != (want == more):
            one, two = two, one
        q = _ask(
            rng, [f"{one.paint} is {word} than {two.paint}, {tail}", f"{one.paint} {word} than {two.paint}: {tail}"]
        )
    else:
        word = _pick(rng, ["maximum", "tallest", "largest"] if more else ["minimum", "lowest", "smallest"])
        best = sorted(scene.bars, key=lambda b: b.height)[-1 if more else 0]
        others = [b for b in scene.bars if b is not best]
        bar = best if want else others[int(rng.integers(len(others)))]
        q = _ask(rng, [f"{bar.paint} is the {word}, {tail}", f"The {word} one is {bar.paint}: {tail}"])
    return Example(scene, q, yes if want else no)


def exists(rng: Rng) -> Example:
    """Whether a named thing is in the picture, in several pairs of words."""
    scene = scenes.scatter(rng, 1, 5)
    yes, no = [("true", "false"), ("right", "wrong"), ("yes", "no")][int(rng.integers(3))]
    want = bool(rng.integers(2))
    present = {t.name for t in scene.things}
    names = [k for k in canvas.KINDS if (k in present) == want]
    word = _pick(rng, names)
    q = _ask(rng, [f"There is a {word}, {yes} or {no}?", f"Do you see a {word}? {yes} or {no}?"])
    return Example(scene, q, yes if want else no)


def price(rng: Rng) -> Example:
    """Read a price table, also minus one, also backwards."""
    scene = scenes.table(rng)
    t, value = scene.prices[int(rng.integers(len(scene.prices)))]
    k = t.name
    style = rng.random()
    if style < 0.65:
        q = _ask(
            rng,
            [
                f"Price of the {k}?",
                f"Which digit is next to the {k}?",
                f"The {k} costs",
                f"What does a {k} cost in dollar?",
                f"Read the number beside the {k}.",
                f"Amy and Ben buy one {k}. What do they pay?",
            ],
        )
        return Example(scene, q, str(value))
    if style < 0.85:
        q = _ask(
            rng,
            [
                f"Price of the {k} minus 1?",
                f"The {k} is 1 dollar cheaper now. Price?",
                f"With a coupon of 1 dollar, what does the {k} cost?",
            ],
        )
        return Example(scene, q, str(value - 1))
    q = _ask(rng, [f"What costs {value} dollar?", f"Which thing has the number {value}?"])
    names = [thing.name for thing, p in scene.prices if p == value]
    return Example(scene, q, names[0])


def listing(rng: Rng) -> Example:
    """Pairs of what belongs together, in any order: dense practice in looking one up by the other."""
    style = int(rng.integers(3))
    if style == 0:
        scene = scenes.scatter(rng, 2, 6)
        rows = [
            {"color": t.paint, "shape": t.name, "row": str(t.row + 1), "column": str(t.column + 1)}
            for t in scene.things
        ]
    elif style == 1:
        scene = scenes.chart(rng, 2)
        rows = [{"color": b.paint, "letter": b.label, "value": str(b.height)} for b in scene.bars]
    else:
        scene = scenes.table(rng)
        rows = [{"shape": t.name, "price": str(p), "color": t.paint} for t, p in scene.prices]
    keys = [str(k) for k in rng.permutation(list(rows[0]))[:2]]
    order = [int(i) for i in rng.permutation(len(rows))]
    answer = ", ".join(f"{rows[i][keys[0]]} {rows[i][keys[1]]}" for i in order)
    return Example(scene, f"List {keys[0]} and {keys[1]}.", answer)


def look_up(rng: Rng) -> Example:
    """The same pairs, one question for each, in the fewest words."""
    example = listing(rng)
    pairs = example.answer.split(", ")
    keys = [pair.split(" ")[0] for pair in pairs]
    pairs = [p for p, k in zip(pairs, keys, strict=True) if keys.count(k) == 1] or pairs[:1]
    key, value = _pick(rng, pairs).split(" ")
    names = example.question.removeprefix("List ").removesuffix(".").split(" and ")
    return Example(example.scene, f"{names[0]} {key}: {names[1]}?", value)


def copy_word(rng: Rng) -> Example:
    """Repeat a word of the instruction: teaches every word of the vocabulary, picture or not."""
    scene = any_scene(rng)
    word = _pick(rng, VOCABULARY)
    q = _ask(rng, [f"Say the word {word}.", f"Repeat: {word}.", f"{word.capitalize()}: repeat."])
    return Example(scene, q, word)


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
