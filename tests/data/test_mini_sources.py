"""Reworded tasks, abilities with a second source, and styles: right answers, other words, the same things drawn."""

import re
from itertools import combinations

import numpy as np
import pytest

from fcit import registry
from fcit.data import records
from fcit.data.mini import scenes
from fcit.data.mini.abilities import ABILITIES
from fcit.data.mini.drawing import STYLES
from fcit.data.mini.questions import PLACES
from fcit.data.mini.reworded import REWORDED
from fcit.data.mini.sources import SOURCES, source_of
from fcit.data.spec import read_spec
from tests.helpers.grid import Grid

NEW = [(name, split) for name in (*REWORDED, *ABILITIES) for split in ("train", "test")]


def examples(name: str, split: str, count: int, seed: int) -> list:
    rng = np.random.default_rng([seed, *name.encode()])
    return [source_of(name, split).maker(rng) for _ in range(count)]


def colored(g: Grid, q: str) -> tuple[str, str, int, int]:
    """The thing that a question describes by its colour, its kind, or both."""
    words = re.findall(r"\w+", q)
    (thing,) = [t for t in g.things if t[0] in words or t[1] in words]
    return thing


def series(q: str, g: Grid) -> str:
    best = (max if "tallest" in q else min)(g.by_paint, key=g.by_paint.get)
    return re.findall(rf"^(\w): {best}$", q, re.MULTILINE)[0]


def sums(q: str, g: Grid) -> str:
    change = int(re.findall(r"\d", q)[0])
    return str(len(g.things) + (change if "Add" in q else -change))


def photos(q: str, g: Grid) -> str:
    (p1, a, r1, c1), (p2, b, r2, c2) = g.things
    place = ("above" if r1 < r2 else "below") if r1 != r2 else ("left of" if c1 < c2 else "right of")
    return f"{p1} {a} {place} {p2} {b}"


def truths(q: str, g: Grid) -> str:
    one, word, two = re.search(r"chart (\w+) is (\w+) than (\w+)", q).groups()
    return str((g.by_paint[one] > g.by_paint[two]) == (word == "taller")).lower()


def cells(q: str, g: Grid) -> str:
    ((row, column),) = [(r, c) for p, k, r, c in g.things if f"the {p} {k} in" in q]
    return f"row {row + 1} column {column + 1}"


def bills(q: str, g: Grid) -> str:
    return str(g.price(re.search(r"buy one (\w+)", q)[1]) - ("coupon" in q))


def box(q: str, g: Grid) -> str:
    _, _, row, column = colored(g, q)
    return f"[{column / 4:.2f}, {row / 4:.2f}, {(column + 1) / 4:.2f}, {(row + 1) / 4:.2f}]"


def line(q: str, g: Grid) -> str:
    return g.line(0 if re.search("upper|title", q) else 1)


def counted(q: str, g: Grid) -> str:
    return str(len(g.things))


ORACLES = {
    "long-kinds": lambda q, g: g.things[0][1],
    "long-series": series,
    "long-icons": counted,
    "long-sums": sums,
    "long-covers": line,
    "long-photos": photos,
    "long-truths": truths,
    "long-paints": lambda q, g: colored(g, q)["color" not in q],
    "long-homes": lambda q, g: PLACES[colored(g, q)[1]],
    "long-cells": cells,
    "long-values": lambda q, g: str(g.by_paint[re.search(r"(\w+) bar", q)[1]]),
    "long-bills": bills,
    "ability-ocr": line,
    "ability-math": sums,
    "ability-vp": counted,
    "ability-gui": box,
}


@pytest.mark.parametrize(("name", "split"), NEW)
def test_answers_are_right(name, split):
    for example in examples(name, split, 120, 3):
        assert example.answer == ORACLES[name](example.question, Grid(example.scene)), example.question


def test_a_photos_references_say_the_same():
    for example in examples("long-photos", "train", 100, 3):
        first, second, third = example.references
        assert first == example.answer
        one, place, two = re.fullmatch(r"(\w+ \w+) (above|below|left of|right of) (\w+ \w+)", first).groups()
        back = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}[place]
        assert second == f"{two} {back} {one}"
        assert third == f"{one} and {two}"


@pytest.mark.parametrize(("name", "split"), [(n, s) for n, s in NEW if n in ABILITIES or s == "test"])
def test_no_constant_answer_pays(name, split):
    spec = {**read_spec("fcit-mini-long").datasets, **read_spec("fcit-mini-ability").datasets}[name]
    scorer = registry.resolve("scorer", spec.scorer)
    test = [
        records.TestRecord(str(n), ("",), e.question, e.answer, tuple(e.references))
        for n, e in enumerate(examples(name, split, 120, 1))
    ]
    answers = list(dict.fromkeys(e.answer for e in examples(name, split, 200, 2)))
    answers = answers[: 8 if name == "long-photos" else 60]  # captions take longest
    best = max(answers, key=lambda text: scorer([text] * len(test), test).score)
    assert scorer([best] * len(test), test).score <= (60 if name == "long-truths" else 40), best


# ---------------------------------------------------------------------- wording


def test_tasks_share_no_question():
    asked = {
        (name, split): {e.question for e in examples(name, split, 60, 7)}
        for name in {*read_spec("fcit-mini-long").datasets, *ABILITIES}
        for split in ("train", "test" if name in ABILITIES else "train")
    }
    for one, two in combinations(asked, 2):
        assert not asked[one] & asked[two], (one, two)


def test_only_abilities_are_tested_on_another_source_than_they_are_learnt_from():
    other = {name for name, (learnt, tested) in SOURCES.items() if learnt != tested}
    assert other == set(ABILITIES)
    for name in ABILITIES:
        assert source_of(name, "train").style == "plain"
        assert source_of(name, "val") == source_of(name, "test")
        assert source_of(name, "test").style != "plain"


def test_the_first_eight_of_24_tasks_are_those_of_the_task_benchmark():
    long, task, everything = (read_spec(f"fcit-mini-{name}") for name in ("long", "task", "all"))
    assert len(long.tasks) == 24
    assert long.tasks[:8] == task.tasks
    assert {t[0] for t in long.tasks[:12]} == set(everything.datasets)
    assert {t[0] for t in long.tasks[12:]} == set(REWORDED)
    assert {name: long.datasets[name] for name in everything.datasets} == everything.datasets


# ---------------------------------------------------------------------- styles


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_every_picture_in_its_own_way_and_keeps_what_is_in_it(style):
    rng = np.random.default_rng(0)
    plain = scenes.images([scenes.scatter(rng).decorate(rng) for _ in range(3)])
    before = plain.copy()
    drawn = STYLES[style](plain)
    assert (plain == before).all()
    assert (drawn.shape, drawn.dtype) == (plain.shape, plain.dtype)
    assert all((a != b).any() for a, b in zip(drawn, plain, strict=True)) == (style != "plain")
    for a, b in zip(drawn[:, 2:-2, 2:-2], plain[:, 2:-2, 2:-2], strict=True):
        # the brighter of two pixels stays the brighter nearly everywhere
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.6
    others = [STYLES[name](plain) for name in STYLES if name != style]
    assert not any((drawn == other).all() for other in others)
