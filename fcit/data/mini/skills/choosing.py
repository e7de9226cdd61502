"""Options: choosing one by the picture or by a hint."""

from __future__ import annotations

from fcit.data.mini import canvas, scenes
from fcit.data.mini.questions import Example
from fcit.data.mini.skills.wording import OPTION, Rng, pick, thing_of

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
        ask = pick(rng, ["Which of these is in the picture?", "What do you see?", "Choose the kind of thing."])
    elif style == 1:
        scene = scenes.scatter(rng, 1, 5)
        t = thing_of(rng, scene)
        right, pool = t.paint, list(canvas.COLOR_NAMES)
        ask = pick(rng, [f"Choose the color of the {t.name}.", f"The color of the {t.name} is"])
    elif style == 2:
        scene = scenes.chart(rng, 2)
        most = bool(rng.integers(2))
        bar = sorted(scene.bars, key=lambda b: b.height)[-1 if most else 0]
        right, pool = bar.paint, list(canvas.COLOR_NAMES)
        word = pick(rng, ["tallest", "highest", "largest"] if most else ["lowest", "shortest", "smallest"])
        ask = pick(rng, [f"Choose the {word} bar.", f"Which bar is {word}?"])
    else:
        scene = scenes.any_scene(rng)
        pool = list(canvas.COLOR_NAMES) if rng.random() < 0.5 else list(canvas.KINDS)
        right = pick(rng, pool)
        ask = pick(rng, [f"Choose {right}.", f"Find {right} in the list.", f"The right one is {right}."])
    others = [w for w in rng.permutation(pool).tolist() if w != right]
    words = [right, *others[: size - 1]]
    if style == 3 and rng.random() < 0.5:
        # The hint may come after the options.
        hint, ask = ask, pick(rng, ["Choose.", "Pick one of these.", "Which series is it?"])
    else:
        hint = ""
    if style == 2:
        words = [right, *[b.paint for b in scene.bars if b.paint != right][: size - 1]]
    order = [int(i) for i in rng.permutation(len(words))]
    options = glue.join(pattern.format(index[p], words[i]) for p, i in enumerate(order))
    suffix = pick(rng, OPTION)
    q = "\n".join(part for part in (ask, options, hint, suffix) if part)
    return Example(scene, q, reply.format(index[order.index(0)]))
