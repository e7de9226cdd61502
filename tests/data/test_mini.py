"""The mini datasets: reproducible, apart from pre-training, worth answering, and right."""

import hashlib
import re
from itertools import islice

import numpy as np
import pytest

from fcit import registry
from fcit.data import formats, records
from fcit.data.images.opening import open_image
from fcit.data.mini import canvas, corpus, render, scenes
from fcit.data.mini.questions import CAPTION, MAKERS, OPTION, PLACES, WORD
from fcit.data.spec import read_spec

NAMES = list(MAKERS)
FCIT = list(read_spec("fcit-mini-all").datasets)


def examples(name: str, count: int, seed: int) -> list:
    rng = np.random.default_rng([seed, *name.encode()])
    return [MAKERS[name](rng) for _ in range(count)]


# ---------------------------------------------------------------------- rendering


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(render, "SPLITS", {"train": 8, "val": 4, "test": 5})


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_rendering(name, tmp_path, few):
    for root in ("a", "b"):
        render.make(name, tmp_path / root)
    made = files(tmp_path / "a")
    assert made == files(tmp_path / "b")
    images = [hashlib.sha256(data).digest() for path, data in made.items() if path.endswith(".png")]
    assert len(images) == len(set(images)) == 8 + 4 + 5
    assert not [p for p in (tmp_path / "a").iterdir() if p.name not in ("datasets", "instructions")]

    folder, pictures = tmp_path / "a" / "instructions" / render.FOLDERS[name], tmp_path / "a" / "datasets"
    train = formats.read_train(folder / "train.json")
    assert len(train) == 8
    for split, count in (("val", 4), ("test", 5)):
        coco = folder / f"{split}_coco_type.json"
        found = formats.read_test(folder / f"{split}.json", coco if coco.is_file() else None)
        assert len(found) == count
        assert all(r.answer for r in found)
        assert all(len(r.references) == 3 for r in found) == (name == "flickr30k")
        train += found
    for record in train:
        assert open_image(pictures, record.images[0]).size == (canvas.PIXELS, canvas.PIXELS)


def test_another_seed_draws_other_images(tmp_path, few):
    render.make("iconqa", tmp_path / "a", seed=0)
    render.make("iconqa", tmp_path / "b", seed=1)
    assert files(tmp_path / "a") != files(tmp_path / "b")


def test_ensure_renders_once(tmp_path, few):
    render.ensure("iconqa", tmp_path)
    marker = tmp_path / "instructions" / "IconQA" / "marker"
    marker.touch()
    render.ensure("iconqa", tmp_path)
    assert marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_layouts_belong_to_the_mini_buckets(name):
    rng = np.random.default_rng(0)
    drawn = islice(render._examples(name, rng), 20)
    assert all(example.scene.bucket < scenes.MINI_BUCKETS for example in drawn)


def test_rendering_does_not_depend_on_how_many_are_composed_at_a_time(monkeypatch, tmp_path, few):
    render.make("iconqa", tmp_path / "a")
    monkeypatch.setattr(render, "AT_ONCE", 3)
    render.make("iconqa", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_pre_training_layouts_do_not():
    rng = np.random.default_rng(0)
    drawn = [corpus.sample(rng)[1].scene for _ in range(300)]
    drawn += [corpus.sample(rng, first=True)[1].scene for _ in range(50)]
    drawn += [corpus.sample_scene(rng) for _ in range(50)]
    assert all(scene.bucket >= scenes.MINI_BUCKETS for scene in drawn)


def test_general_questions_are_those_of_pre_training_and_none_is_trained(tmp_path, few):
    rng = np.random.default_rng(0)
    drawn = list(islice(render._examples(render.GENERAL, rng), 300))
    assert all(example.scene.bucket >= scenes.MINI_BUCKETS for example in drawn)
    assert not any(example.question.startswith(("List ", "Describe ")) for example in drawn)
    render.make(render.GENERAL, tmp_path)
    assert {file.name for file in (tmp_path / "instructions" / "General").iterdir()} == {"val.json", "test.json"}


def test_pixel_shifts_do_not_move_a_layout_to_another_bucket():
    rng = np.random.default_rng(0)
    scene = scenes.scatter(rng)
    before = scene.bucket
    assert scene.decorate(rng).bucket == before


# ---------------------------------------------------------------------- constant answers


@pytest.mark.parametrize("name", FCIT)
def test_no_constant_answer_pays(name):
    scorer = registry.resolve("scorer", read_spec("fcit-mini-all").datasets[name].scorer)
    test = [
        records.TestRecord(str(n), ("",), e.question, e.answer, tuple(e.references))
        for n, e in enumerate(examples(name, 200, 1))
    ]
    answers = dict.fromkeys(e.answer for e in examples(name, 400, 2))
    constants = [*(list(answers)[:60] if name == "flickr30k" else answers), "", *"aeiost0123456789."]
    best = max(constants, key=lambda text: scorer([text] * len(test), test).score)
    assert scorer([best] * len(test), test).score <= (55 if name == "figureqa" else 35), best


# ---------------------------------------------------------------------- right answers, read off the grid


class Grid:
    """What is drawn, read from the cells alone."""

    def __init__(self, scene: scenes.Scene) -> None:
        self.things, self.glyphs, self.heights, self.paints = [], {}, {}, {}
        for cell, (content, color) in enumerate(zip(scene.contents.tolist(), scene.colors.tolist(), strict=True)):
            row, column = divmod(cell, 4)
            if 1 <= content <= 16:
                self.things.append((canvas.COLOR_NAMES[color], canvas.KINDS[content - 1], row, column))
            elif canvas.LETTER0 <= content < canvas.FILL0:
                self.glyphs[row, column] = (canvas.LETTERS + canvas.DIGITS)[content - canvas.LETTER0]
            elif content >= canvas.FILL0:
                self.heights[column] = self.heights.get(column, 0) + content - canvas.FILL0 + 1
                self.paints[column] = canvas.COLOR_NAMES[color]

    @property
    def by_paint(self) -> dict[str, int]:
        """Bar heights by colour."""
        return {self.paints[c]: h for c, h in self.heights.items()}

    def line(self, which: int) -> str:
        row = sorted({r for r, _ in self.glyphs})[which]
        return "".join(self.glyphs[k] for k in sorted(self.glyphs) if k[0] == row)

    def price(self, kind: str) -> int:
        ((row, column),) = [(r, c) for _, k, r, c in self.things if k == kind]
        return int(self.glyphs[row, column + 1])


def options(question: str, mark: str) -> dict[str, str]:
    return dict(re.findall(rf"^(\w){re.escape(mark)} (\w+)$", question, re.MULTILINE))


def numbers(question: str) -> int:
    return int(re.findall(r"\d+", question)[0])


def imagenet_r(q: str, g: Grid) -> str:
    (kind,) = {kind for _, kind, _, _ in g.things}
    return kind


def arxivqa(q: str, g: Grid) -> str:
    extreme = (max if "largest" in q else min)(g.by_paint, key=g.by_paint.get)
    assert "Rationale" not in q or f"in {extreme}." in q
    assert len(options(q, ")")) == 4
    return next(letter for letter, paint in options(q, ")").items() if paint == extreme)


def iconqa(q: str, g: Grid) -> str:
    if "How many" in q:
        return str(len(g.things))
    return next(n for n, kind in options(q, ".").items() if kind == g.things[0][1])


def clevr_math(q: str, g: Grid) -> str:
    return str(len(g.things) + (numbers(q) if q.startswith("Add") else -numbers(q)))


def ocr_vqa(q: str, g: Grid) -> str:
    return g.line(0 if "title" in q else 1)


def figureqa(q: str, g: Grid) -> str:
    words = q.splitlines()[0].rstrip("?").split()
    heights = g.by_paint
    first = heights[words[4] if words[3] == "is" else words[3]]
    if "maximum" in q or "minimum" in q:
        yes = first == (max if "maximum" in q else min)(heights.values())
    else:
        other = heights[words[-1]]
        yes = first > other if "greater" in q else first < other
    return "yes" if yes else "no"


def super_clevr(q: str, g: Grid) -> str:
    if "color" in q:
        ((paint, _),) = [(p, k) for p, k, _, _ in g.things if f"{k} vehicle" in q]
        return paint
    ((_, kind),) = [(p, k) for p, k, _, _ in g.things if f"{p} vehicle" in q]
    return kind


def aokvqa(q: str, g: Grid) -> str:
    (kind,) = [k for p, k, _, _ in g.things if f"the {p} item" in q]
    return PLACES[kind]


def grounding(q: str, g: Grid) -> str:
    ((row, column),) = [(r, c) for p, k, r, c in g.things if f"the {p} {k}." in q]
    return f"[{column / 4:.2f}, {row / 4:.2f}, {(column + 1) / 4:.2f}, {(row + 1) / 4:.2f}]"


def dvqa(q: str, g: Grid) -> str:
    labels = {c: letter for (_, c), letter in g.glyphs.items()}
    if "value" in q:
        label = re.findall(r"labeled (\w)", q)[0]
        return str(next(h for c, h in g.heights.items() if labels[c] == label))
    return next(labels[c] for c, paint in g.paints.items() if f"the {paint} bar" in q)


def tabmwp(q: str, g: Grid) -> str:
    kind = re.findall(r"(?:one|a) (\w+)\?", q)[-1]
    return str(g.price(kind) - ("coupon" in q))


def alike_bars(q: str, g: Grid) -> str:
    return max(g.by_paint, key=g.by_paint.get)


def alike_count(q: str, g: Grid) -> str:
    return str(len(g.things))


def alike_price(q: str, g: Grid) -> str:
    return g.line(0)


ORACLES = {
    "imagenet-r": imagenet_r,
    "arxivqa": arxivqa,
    "iconqa": iconqa,
    "clevr-math": clevr_math,
    "ocr-vqa": ocr_vqa,
    "figureqa": figureqa,
    "super-clevr": super_clevr,
    "aokvqa": aokvqa,
    "grounding": grounding,
    "dvqa": dvqa,
    "tabmwp": tabmwp,
    "alike-icons": imagenet_r,
    "alike-bars": alike_bars,
    "alike-count": alike_count,
    "alike-price": alike_price,
}


@pytest.mark.parametrize("name", ORACLES)
def test_answers_are_right(name):
    for example in examples(name, 300, 3):
        assert example.answer == ORACLES[name](example.question, Grid(example.scene)), example.question


def test_every_dataset_but_the_captions_has_an_oracle():
    assert set(NAMES) - set(ORACLES) == {"flickr30k"}


def test_captions_are_right():
    for example in examples("flickr30k", 300, 3):
        places = {kind: (row, column) for _, kind, row, column in Grid(example.scene).things}
        assert len(set(example.references)) == 3
        assert example.answer == example.references[0]
        for text in example.references[:2]:
            a, relation, b = re.fullmatch(r"(\w+) (above|below|left of|right of) (\w+)", text).groups()
            (r1, c1), (r2, c2) = places[a], places[b]
            assert {
                "above": r1 < r2,
                "below": r1 > r2,
                "left of": r1 == r2 and c1 < c2,
                "right of": r1 == r2 and c1 > c2,
            }[relation]
        assert all(thing in example.references[2] for thing in places)


def test_about_half_of_the_yes_no_answers_are_yes():
    answers = [e.answer for e in examples("figureqa", 600, 4)]
    assert 250 < answers.count("yes") < 350


@pytest.mark.parametrize("name", NAMES)
def test_instructions_end_as_in_fcit(name):
    ends = {question.splitlines()[-1] for question in (e.question for e in examples(name, 40, 5))}
    if name == "grounding":
        assert all("bounding box coordinates" in end for end in ends)
    else:
        assert ends <= {WORD, OPTION, CAPTION}


@pytest.mark.parametrize(("one", "two"), [("alike-icons", "alike-bars"), ("alike-count", "alike-price")])
def test_look_alikes_share_their_wording(one, two):
    assert {e.question for e in examples(one, 60, 6)} == {e.question for e in examples(two, 60, 6)}


def test_datasets_share_no_instruction_otherwise():
    asked = {name: {e.question for e in examples(name, 100, 7)} for name in FCIT}
    for n, one in enumerate(FCIT):
        assert not any(asked[one] & asked[two] for two in FCIT[n + 1 :])
