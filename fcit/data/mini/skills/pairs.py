"""What belongs together: a thing and its price, any two columns of a scene; one looked up by the other."""

from __future__ import annotations

from fcit.data.mini import scenes
from fcit.data.mini.questions import Example
from fcit.data.mini.skills.wording import Rng, pick, worded


def price(rng: Rng) -> Example:
    """Read a price table, also minus one, also backwards."""
    scene = scenes.table(rng)
    t, value = scene.prices[int(rng.integers(len(scene.prices)))]
    k = t.name
    style = rng.random()
    if style < 0.65:
        q = worded(
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
        q = worded(
            rng,
            [
                f"Price of the {k} minus 1?",
                f"The {k} is 1 dollar cheaper now. Price?",
                f"With a coupon of 1 dollar, what does the {k} cost?",
            ],
        )
        return Example(scene, q, str(value - 1))
    q = worded(rng, [f"What costs {value} dollar?", f"Which thing has the number {value}?"])
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
    key, value = pick(rng, pairs).split(" ")
    names = example.question.removeprefix("List ").removesuffix(".").split(" and ")
    return Example(example.scene, f"{names[0]} {key}: {names[1]}?", value)
