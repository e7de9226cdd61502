import gzip
import json

import pytest

from fcit.data import formats, records
from fcit.errors import DataError


def train_row(text: str = "<image>\nWhat is it?", answer: object = "cup", **changes) -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"image": "a/1.png", "conversations": turns, **changes}


@pytest.fixture
def write(tmp_path):
    def _write(content: object, name: str = "file.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path

    return _write


@pytest.mark.parametrize("text", ["<image>\nWhat is it?", "What is it?\n<image>", "What <image>is it?", "What is it?"])
def test_train_record_with_the_tag_anywhere(write, text):
    assert formats.read_train(write([train_row(text)])) == [records.Record.single("a/1.png", "What is it?", "cup")]


def test_numbers_are_text(write):
    assert formats.read_train(write([train_row(answer=3)]))[0].turns[0].answer == "3"


def test_empty_client_file(write):
    assert formats.read_train(write([])) == []


def test_test_records(write):
    path = write(
        [
            {"question_id": 1, "image": "a.png", "text": "How many?", "answer": "3"},
            {"question_id": "2", "image": "b.png", "text": "Where?", "answer_bbox": "[0, 0, 1, 1]", "size": [4, 4]},
            {"question_id": "3", "image": "b.png", "text": "Where?", "answer_bbox": [0, 0, 1, 1]},
        ]
    )
    assert [r.question_id for r in formats.read_test(path)] == ["1", "2", "3"]
    assert [r.answer for r in formats.read_test(path)] == ["3", "[0, 0, 1, 1]", "[0, 0, 1, 1]"]


def test_empty_test_set(write):
    with pytest.raises(DataError, match="no test records"):
        formats.read_test(write([]))


def test_question_without_an_answer(write):
    with pytest.raises(DataError, match="answer"):
        formats.read_test(write([{"question_id": "1", "image": "a.png", "text": "How many?"}]))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such instruction file"):
        formats.read_train(tmp_path / "none.json")


def test_broken_json_names_file_and_line(write):
    with pytest.raises(DataError, match=r"bad\.json, line 3: broken JSON"):
        formats.read_train(write('[\n{"image": "a"},\n{"image": }\n]', "bad.json"))


def test_not_a_list(write):
    with pytest.raises(DataError, match="must hold a JSON list"):
        formats.read_train(write({"image": "a"}))


def test_not_text(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"UTF-8 text \(.*\)$"):
        formats.read_train(path)
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(b"[]"))
    with pytest.raises(DataError, match=r"UTF-8.*; unpack it first"):
        formats.read_train(tmp_path / "train.json.gz")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (train_row(image={"a": 1}), "'image' must be text"),
        (train_row(image=None), "1 image tags in its questions, and it names 0 images"),
        ({"image": "a"}, "'conversations' must be a list"),
        (train_row(conversations=[{"from": "human", "value": "x"}]), "needs a question .* and its answer"),
        (
            train_row(conversations=[{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]),
            "'user' is to speak",
        ),
        (train_row(conversations=[{"from": "user", "value": "x"}, {"from": "me", "value": "y"}]), "said by 'me'"),
        (train_row(answer="a <image> b"), "holds the image tag"),
        (train_row(answer=" "), "answer is empty"),
        (train_row(answer=["a"]), "'value' must be text"),
        ("text", "'conversations' must be a list"),
        (None, "'conversations' must be a list"),
    ],
)
def test_broken_record_names_file_line_and_record(write, row, reason):
    text = "[\n" + json.dumps(train_row()) + ",\n\n" + json.dumps(row) + "\n]"
    with pytest.raises(DataError, match=rf"bad\.json, line 4, record 1: .*{reason}"):
        formats.read_train(write(text, "bad.json"))


def coco(*pairs) -> dict:
    return {"annotations": [{"id": i, "image_id": n, "caption": c} for i, (n, c) in enumerate(pairs)]}


QUESTIONS = [{"question_id": str(n), "image": "a.png", "text": "What?"} for n in (1, 2)]


def test_coco_references_count_the_questions(write):
    references = write(coco((2, "b"), (1, "a"), (1, "aa")), "coco.json")
    first, second = formats.read_test(write(QUESTIONS), references)
    assert (first.answer, first.references) == ("a", ("a", "aa"))
    assert (second.answer, second.references) == ("b", ("b",))


def test_coco_without_a_caption_for_a_question(write):
    with pytest.raises(DataError, match="no caption for image_id 2"):
        formats.read_test(write(QUESTIONS), write(coco((1, "a")), "coco.json"))


@pytest.mark.parametrize("content", ["[", [], {"annotations": [{"id": 1}]}, {"annotations": [5]}, {}])
def test_broken_coco(write, content):
    with pytest.raises(DataError, match=r"coco\.json"):
        formats.read_test(write(QUESTIONS), write(content, "coco.json"))
