"""The mini datasets: reproducible, apart from pre-training, worth answering, and right."""

import errno
import hashlib
import io
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcit import registry
from fcit.data import formats, records
from fcit.data.images.opening import open_image
from fcit.data.mini import canvas, corpus, render, scenes
from fcit.data.mini.questions import CAPTION, MAKERS, OPTION, PLACES, WORD
from fcit.data.mini.sources import SOURCES, source_of
from fcit.data.spec import read_spec
from fcit.errors import ConfigError, DataError
from tests.helpers.grid import Grid

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


#: Of the texts and pixels that ``few`` renders: what a mini benchmark holds is never changed, only added to.
PINNED = {
    "imagenet-r": "c66b9f6a849ee831",
    "arxivqa": "53510284e5fed7f3",
    "iconqa": "abd8bd4792888863",
    "clevr-math": "eed23de53200e14d",
    "ocr-vqa": "ec9e24fe92a5d6b9",
    "flickr30k": "137d33494560938b",
    "figureqa": "cea010909da2dcdb",
    "super-clevr": "36e6b33c967b603d",
    "aokvqa": "b4a374a0f6acec42",
    "grounding": "f5ea6cea401cb6d0",
    "dvqa": "7e42b39f95ba0e79",
    "tabmwp": "cd07fd5ff7334728",
    "alike-icons": "0c99c1cd3ded415c",
    "alike-bars": "1f4fdd5ef897933c",
    "alike-count": "2eed5bdc0ed23e75",
    "alike-price": "ff3e466b1ea437f1",
    "long-kinds": "56ec517f1723751b",
    "long-series": "eb6cbbda54e17159",
    "long-icons": "b3a7ce9851e51ee8",
    "long-sums": "6e35ab86195b2e25",
    "long-covers": "20c7db7dc016efe8",
    "long-photos": "c480e6ed83e09e1c",
    "long-truths": "a959a992e7337c7a",
    "long-paints": "94c5bccf56a600af",
    "long-homes": "f79000863a1eba9f",
    "long-cells": "345652fd026ee192",
    "long-values": "433eabd1c6385dc2",
    "long-bills": "2c74198d0df9788b",
    "ability-ocr": "b1cd077b8fcaab5c",
    "ability-math": "c1e9cc721155b05c",
    "ability-vp": "ed2c9878e6ee15a2",
    "ability-gui": "ea0baac79448b161",
}


def digest(made: dict[str, bytes]) -> str:
    """One of all files; of pictures their pixels, as another release of Pillow may pack them otherwise."""
    found = hashlib.sha256()
    for path, data in sorted(made.items()):
        content = np.asarray(Image.open(io.BytesIO(data))).tobytes() if path.endswith(".png") else data
        found.update(path.encode() + content)
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", SOURCES)
def test_rendering(name, tmp_path, few):
    render.make(name, tmp_path / "a")
    made = files(tmp_path / "a")
    assert digest(made) == PINNED[name]
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
        assert all(len(r.references) == 3 for r in found) == (name in ("flickr30k", "long-photos"))
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


def test_what_others_put_there_is_left_alone(tmp_path, few):
    """A data root of real data: nothing of it is removed, and it is not taken for what is rendered."""
    images = tmp_path / "datasets" / "ImageNet-R"
    (images / "train" / "n01443537").mkdir(parents=True)
    (images / "train" / "n01443537" / "art_0.jpg").touch()
    with pytest.raises(ConfigError, match="not what fcit renders"):
        render.ensure("imagenet-r", tmp_path)
    assert (images / "train" / "n01443537" / "art_0.jpg").is_file()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "datasets" / "IconQA").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not what fcit renders"):
        render.ensure("iconqa", tmp_path)
    texts = tmp_path / "instructions" / "TabMWP"
    texts.mkdir(parents=True)
    (texts / "train.json").touch()
    (texts / "test.json").touch()
    with pytest.raises(ConfigError, match="not what fcit renders"):
        render.ensure("tabmwp", tmp_path)


def test_pictures_of_an_interrupted_rendering_are_replaced(tmp_path, few):
    render.ensure("iconqa", tmp_path)
    before = files(tmp_path)
    shutil.rmtree(tmp_path / "instructions" / "IconQA")
    (tmp_path / "datasets" / "IconQA" / "test" / "00099.png").touch()
    render.ensure("iconqa", tmp_path)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path, few, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"iconqa.*No space left.*FCIT_CACHE"):
        render.ensure("iconqa", tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".making")]


@pytest.mark.parametrize("name", NAMES)
def test_layouts_belong_to_the_mini_buckets(name):
    rng = np.random.default_rng(0)
    drawn = islice(render._examples(source_of(name, "train"), rng), 20)
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
    drawn = list(islice(render._examples(source_of(render.GENERAL, "test"), rng), 300))
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
    constants = [*(list(answers)[:20] if name == "flickr30k" else answers), "", *"aeiost0123456789."]
    best = max(constants, key=lambda text: scorer([text] * len(test), test).score)
    assert scorer([best] * len(test), test).score <= (55 if name == "figureqa" else 35), best


# ---------------------------------------------------------------------- right answers, read off the grid


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
