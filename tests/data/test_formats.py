"""Conversations as files have them: what becomes of every kind of row, and what each refusal says."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcit import registry
from fcit.data import formats
from fcit.data.checks.inspection import Inspection
from fcit.data.formats import llava
from fcit.data.formats.conversation import text_of
from fcit.data.records import Record, Turn
from fcit.data.spec import BenchmarkSpec, read_spec
from fcit.errors import ConfigError, DataError
from tests.helpers.rows import SYSTEM, THREE, chat, said, shown, text

LLAVA = {
    "tag in the first turn": (
        {"image": "a.png", "conversations": said("<image>\nQ1", "A1", "Q2", " A2", "Q3", "A3")},
        THREE,
    ),
    "no tag": ({"image": "a.png", "conversations": said("Q1", "A1", " Q2 ", " A2", "Q3", "A3")}, THREE),
    "tag at the end of a later turn": (
        {"image": "a.png", "conversations": said("Q1", "A1", "Q2\n<image>", "A2")},
        Record(("a.png",), (Turn("Q1", "A1"), Turn("Q2", "A2", 1))),
    ),
    "tag in the middle of a text": (
        {"image": "a.png", "conversations": said("Look at <image>: what?", "A1")},
        Record(("a.png",), (Turn("Look at : what?", "A1", 1),)),
    ),
    "tag twice in a turn": (
        {"image": "a.png", "conversations": said("<image>\n<image>\nQ1", "A1")},
        Record(("a.png",), (Turn("Q1", "A1", 1),)),
    ),
    "three images over two turns": (
        {"image": ["a.png", "b.png", "c.png"], "conversations": said("<image><image>Q1", "A1", "<image>Q2", "A2")},
        Record(("a.png", "b.png", "c.png"), (Turn("Q1", "A1", 2), Turn("Q2", "A2", 1))),
    ),
    "several images and no tag": (
        {"images": ["a.png", "b.png"], "conversations": said("Q1", "A1", "Q2", "A2")},
        Record(("a.png", "b.png"), (Turn("Q1", "A1", 2), Turn("Q2", "A2"))),
    ),
    "system turn": (
        {"image": "a.png", "conversations": [SYSTEM, *said("<image>Q1", "A1")]},
        Record(("a.png",), (Turn("Q1", "A1", 1),), "Be brief."),
    ),
    "text alone": ({"conversations": said("Q1", "A1", "Q2", 3)}, Record((), (Turn("Q1", "A1"), Turn("Q2", "3")))),
    "no image but the key": ({"image": None, "conversations": said("Q1", "A1")}, Record((), (Turn("Q1", "A1"),))),
    "user and assistant": (
        {"conversations": [{"from": "user", "value": "Q1"}, {"from": "assistant", "value": "A1"}]},
        Record((), (Turn("Q1", "A1"),)),
    ),
}

# ---------------------------------------------------------------------- messages

ONE = Record(("a.png",), (Turn("Q1", "A1", 1),))
TWO = Record(("a.png", "b.png"), (Turn("Q1", "A1", 1), Turn("Q2", "A2", 1)))
MESSAGES = {
    "texts with tags": ({"images": ["a.png"], "messages": chat("<image>Q1", "A1")}, ONE),
    "ShareGPT with roles": ({"image": "a.png", "conversations": chat("Q1\n<image>", "A1")}, ONE),
    "parts that name files": (
        {"messages": chat([shown("a.png"), text("Q1")], "A1", [text("Q2"), shown("b.png")], [text("A2")])},
        TWO,
    ),
    "a path": ({"messages": chat([{"type": "image", "path": "a.png"}, text("Q1")], "A1")}, ONE),
    "OpenAI's image_url": (
        {"messages": chat([text("Q1"), {"type": "image_url", "image_url": {"url": "file://a.png"}}], "A1")},
        ONE,
    ),
    "image_url as a text": ({"messages": chat([{"type": "image_url", "image_url": "a.png"}, text("Q1")], "A1")}, ONE),
    "TRL's list": (
        {"images": ["a.png", "b.png"], "messages": chat([shown(), text("Q1")], "A1", [shown(), text("Q2")], "A2")},
        TWO,
    ),
    "TRL's list and no part": ({"images": ["a.png"], "messages": chat([text("Q1")], [text("A1")])}, ONE),
    "system": (
        {"messages": [{"role": "system", "content": "Be brief."}, *chat("Q1", "A1")]},
        Record((), (Turn("Q1", "A1"),), "Be brief."),
    ),
    "texts of a message are lines": (
        {"messages": chat([text("one"), text("two")], 3)},
        Record((), (Turn("one\ntwo", "3"),)),
    ),
}


@pytest.mark.parametrize(("row", "record"), [*LLAVA.values(), *MESSAGES.values()], ids=[*LLAVA, *MESSAGES])
def test_a_row_is_guessed_and_read(write, row, record):
    file = formats.read_train_file(write([row]))
    assert file.problems == {}
    assert file.records == [record]
    assert file.format == ("llava" if row in [r for r, _ in LLAVA.values()] else "messages")
    assert formats.read_train(write("\n".join([json.dumps(row), "", json.dumps(row)]), "lines.jsonl")) == [record] * 2


def test_byte_order_mark_lines_and_nan(write):
    row = {"id": float("nan"), "image": "a.png", "conversations": said("<image>Q1", "A1")}
    lines = "\ufeff" + "\n".join([json.dumps(row)] * 2)
    for path in (write(lines, "lines.jsonl"), write(lines, "lines.json"), write("\ufeff" + json.dumps([row, row]))):
        assert formats.read_train(path) == [ONE, ONE]
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2: broken JSON"):
        formats.read_train(write(json.dumps(row) + '\n{"image": }', "broken.jsonl"))
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3, record 1: 'value' must be text, got nan"):
        formats.read_train(
            write(f'{json.dumps(row)}\n\n{{"conversations": {json.dumps(said("Q", float("nan")))}}}', "bad.jsonl")
        )


def test_a_list_is_read_whatever_its_file_is_called(write):
    row = {"image": "a.png", "images": [], "conversations": said("<image>Q1", "A1")}
    for indent in (None, 1):
        assert formats.read_train(write(json.dumps([row] * 2, indent=indent), "list.jsonl")) == [ONE, ONE]
    assert formats.read_train(write(json.dumps(row), "one.JSONL")) == [ONE]
    with pytest.raises(DataError, match=r"list\.jsonl, line 3, record 1: 'conversations' must be a list"):
        formats.read_train(write(f"[\n{json.dumps(row)},\n{{}}]", "list.jsonl"))


REFUSED = [
    ({"image": "a.png", "conversations": said("<image>Q1", "A <image>")}, "the answer 'A <image>' holds the image tag"),
    ({"conversations": said("<image>Q1", "A1")}, "1 image tags in its questions, and it names 0 images"),
    ({"image": ["a.png", "b.png"], "conversations": said("<image>Q", "A")}, "1 image tags .* names 2 images"),
    ({"image": "a.png", "conversations": said("<image>Q", "A", "<image>Q", "A")}, "2 image tags .* names 1 images"),
    ({"image": "a.png", "conversations": said("Q1", "A1", "Q2")}, "the last question has no answer"),
    ({"conversations": said("Q1")}, r"needs a question \(human, user\) and its answer \(gpt, assistant\)"),
    ({"conversations": said("Q1", " \n")}, "the answer is empty"),
    ({"conversations": [*said("Q1", "A1"), SYSTEM, *said("A2")]}, "turn 2 .* is by 'system', where 'user' is to speak"),
    ({"conversations": said("Q", "A")[::-1]}, "turn 0 of the conversation is by 'assistant'"),
    ({"conversations": [{"from": "bard", "value": "Q"}]}, "turn 0 is said by 'bard'; known are human, user, gpt"),
    ({"image": "a.png", "conversations": [{**SYSTEM, "value": "<image>"}, *said("Q", "A")]}, "the system turn holds"),
    ({"video": "a.mp4", "conversations": said("Q", "A")}, "names a video, and only images are shown to a model"),
    ({"image": "a.png", "images": ["b.png"], "conversations": said("Q", "A")}, "both 'image' and 'images'"),
    ({"image": ["a.png"] * 65, "conversations": said("Q", "A")}, "names 65 images, more than 64"),
    ({"image": [3.5, {}], "conversations": said("Q", "A")}, "'image' must be text, got {}"),
    ({"conversations": said("Q" * 20_001, "A")}, "'value' has 20,001 characters, more than 20,000"),
    ({"conversations": said("Q\ud800", "A")}, "half a surrogate pair"),
    ({"conversations": {"from": "human"}}, "'conversations' must be a list of turns with 'from' and 'value'"),
    ({"messages": chat([{"type": "audio"}], "A")}, "message 0 has a part of type 'audio'; known are text and image"),
    ({"messages": chat([shown()], "A")}, "message 0 has an image, and the row's 'images' hold no more"),
    ({"images": ["a.png"], "messages": chat([shown("b.png")], "A")}, "message 0 names an image and the row lists"),
    ({"messages": chat([shown("http://x/a.png")], "A")}, "the image 'http://x/a.png' is no file; save it below"),
    ({"messages": chat([shown("data:image/png;base64,AAAA")], "A")}, "is no file"),
    ({"messages": chat(None, "A")}, "the 'content' of message 0 must be text or a list, got None"),
    ({"messages": chat("Q", [text("A"), shown("a.png")])}, "holds the image tag"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0 is said by 'tool'"),
]


@pytest.mark.parametrize(("row", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused_with_file_line_record_and_reason(write, row, words):
    path = write("[\n{},\n" + json.dumps(row) + "\n]")
    file = formats.read_train_file(path, "messages" if "messages" in row else "llava")
    [_, sentence] = file.sentences(2)
    assert file.records == [None, None]
    assert sentence.startswith(f"{path}, line 3, record 1: ")
    with pytest.raises(DataError, match=words):
        raise DataError(sentence)
    assert len(sentence) < 500


texts = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
questions = texts.map(str.strip)
answers = texts.filter(str.strip)
names = st.text(st.sampled_from("ab/.1"), min_size=1, max_size=5)


@st.composite
def records(draw) -> Record:
    turns = [Turn(q, a) for q, a in draw(st.lists(st.tuples(questions, answers), min_size=1, max_size=3))]
    images = draw(st.lists(names, max_size=3))
    placed = [0] * len(turns)
    for _ in images:
        placed[draw(st.integers(0, len(turns) - 1))] += 1
    told = (replace(turn, images=count) for turn, count in zip(turns, placed, strict=True))
    return Record(tuple(images), tuple(told), draw(questions))


@settings(max_examples=40, deadline=None)
@given(records())
def test_a_row_reads_back_unchanged(record):
    row = json.loads(json.dumps(llava.row_of(record)))
    assert llava.is_row(row)
    assert llava.record(row) == record


@pytest.mark.parametrize(("form", "bad"), [(None, 0), ("llava", 0), ("messages", 3)])
def test_a_look_at_the_data_reads_the_format_that_the_benchmark_names(tmp_path, form, bad):
    """And counts records of text alone, of many turns and of several images."""
    (tmp_path / "instructions").mkdir()
    (tmp_path / "datasets").mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / "datasets" / f"{name}.png")
    pair = {"image": ["a.png", "b.png"], "conversations": said("Q1", "A1", "Q2", "A2")}
    rows = [{"conversations": said("Q", "A")}, pair, {"image": "a.png", "conversations": said("<image>Q", "A")}]
    (tmp_path / "instructions" / "train.json").write_text(json.dumps(rows))
    (tmp_path / "instructions" / "test.json").write_text(json.dumps([{"id": 1, "conversations": said("Q", "A")}]))
    data = {"train": "train.json", "test": "test.json", "format": form}
    spec = BenchmarkSpec.model_validate({"name": "own", "datasets": {"set": data}, "tasks": [["set"]]})
    found = Inspection(spec, tmp_path, tmp_path / "cache").dataset("set")
    assert (found.train, found.bad_records, found.bad_images) == (3, bad, 0)
    assert (found.test, found.images, found.good) == ((1, 2, True) if not bad else (None, 0, False))


@pytest.mark.parametrize("value", [7, 1.5, -(10**400)], ids=["small", "fraction", "too large for a float"])
def test_a_number_is_written_out(value):
    assert text_of({"image": value}, "image") == str(value)


@pytest.mark.parametrize("value", [True, float("inf"), float("nan"), None, [1]])
def test_what_is_no_text_and_no_number_is_refused(value):
    with pytest.raises(ValueError, match="'image' must be text"):
        text_of({"image": value}, "image")


def named(form: str) -> BenchmarkSpec:
    data = {"train": "train.json", "test": "test.json", "format": form}
    return BenchmarkSpec.model_validate({"name": "own", "datasets": {"set": data}, "tasks": [["set"]]})


def test_a_benchmark_names_the_formats_that_there_are(monkeypatch, tmp_path):
    for name in registry.FORMATS:
        assert named(name).datasets["set"].format == name
    file = tmp_path / "own.yaml"
    file.write_text("name: own\ndatasets: {set: {train: t.json, test: q.json, format: lava}}\ntasks: [[set]]\n")
    with pytest.raises(
        ConfigError, match=r"datasets\.set\.format: unknown format; did you mean 'llava'\? \(known: llava, "
    ):
        read_spec(str(file))
    monkeypatch.setitem(registry.FORMATS, "lava", "fcit.data.formats.llava")  # one line, as the page on formats says
    assert read_spec(str(file)).datasets["set"].format == "lava"


def test_a_tag_inside_a_tag_is_no_text():
    row = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<ima<image>ge> x"}, {"from": "gpt", "value": "y"}],
    }
    with pytest.raises(ValueError, match="an image tag stands inside another"):
        llava.record(row)
    with pytest.raises(ValueError, match="an image tag stands inside another"):
        llava.question({"question_id": 1, "image": "a.png", "text": "<ima<image>ge> x", "answer": "y"}, 0)
