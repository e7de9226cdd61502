"""Test questions and captions as files have them, and what each refusal says."""

import pytest

from fcit.data import formats
from fcit.data.formats import llava, messages
from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation import scorers
from tests.helpers.rows import SYSTEM, chat, said, shown, text


def test_questions_of_both_formats(write):
    rows = [
        {"question_id": 1, "image": "a.png", "text": "Q\n<image>", "answer": "A"},
        {"question_id": 2, "image": ["a.png", "b.png"], "text": "<image> Q <image>", "answer": "A"},
        {"question_id": 3, "text": " Q ", "answer": "A"},
        {"question_id": 4, "image": "a.png", "conversations": said("<image>\nQ", "A")},
        {"image": "a.png", "conversations": said("<image>\nQ", "A")},
    ]
    assert formats.read_test(write(rows)) == [
        TestRecord("1", ("a.png",), "Q", "A"),
        TestRecord("2", ("a.png", "b.png"), "Q", "A"),
        TestRecord("3", (), " Q ", "A"),
        TestRecord("4", ("a.png",), "Q", "A"),
        TestRecord("4", ("a.png",), "Q", "A"),
    ]
    rows = [
        {"question_id": "x", "images": ["a.png"], "messages": chat("Q", "A")},
        {"id": 7, "messages": chat("Q", "A")},
        {"messages": chat([shown("a.png"), shown("b.png"), text("Q")], "A")},
    ]
    assert formats.read_test(write(rows)) == [
        TestRecord("x", ("a.png",), "Q", "A"),
        TestRecord("7", (), "Q", "A"),
        TestRecord("2", ("a.png", "b.png"), "Q", "A"),
    ]


QUESTION = {"question_id": 1, "image": "a.png", "text": "Q", "answer": "A"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**QUESTION, "answer": None}, "'answer' missing; a test record has question_id, text"),
        ({**QUESTION, "question_id": None, "text": None}, "'question_id', 'text' missing"),
        ({**QUESTION, "image": None, "text": "<image>Q"}, "1 image tags in its questions, and it names 0 images"),
        ({**QUESTION, "image": ["a.png", "b.png"], "text": "<image>Q"}, "1 image tags .* names 2 images"),
        ({"question_id": 1, "conversations": said("Q", "A", "Q", "A")}, "one question and its answer, and this has 2"),
        ({"question_id": 1, "conversations": [SYSTEM, *said("Q", "A")]}, "a test question has no system turn"),
    ],
)
def test_questions_that_are_refused(write, row, words):
    with pytest.raises(DataError, match=rf"file\.json, line 2, record 0: .*{words}"):
        formats.read_test(write([row]))


def test_a_record_with_an_answer_and_a_box_is_judged_by_each_rule_by_its_own(write):
    """The box was dropped where there was an answer, and a null column refused the other."""
    rows = [
        {**QUESTION, "answer": "the cat", "answer_bbox": [0.11, 0.22, 0.51, 0.62]},
        {**QUESTION, "answer": None, "answer_bbox": "[0.11, 0.22, 0.51, 0.62]"},
        {**QUESTION, "answer": "the cat", "answer_bbox": None},
    ]
    both, box, plain = formats.read_test(write(rows))
    assert (both.answer, box.answer, plain.answer) == ("the cat", "[0.11, 0.22, 0.51, 0.62]", "the cat")
    assert (both.box, box.box, plain.box) == ("[0.11, 0.22, 0.51, 0.62]", "[0.11, 0.22, 0.51, 0.62]", "")
    assert scorers.exact(["the cat", "[0.11, 0.22, 0.51, 0.62]", "The cat"], [both, box, plain]).score == 100
    for rule in (scorers.box_iou, scorers.box_iou_official):
        assert rule(["[0.11, 0.22, 0.51, 0.62]"] * 2, [both, box]).score == 100
        with pytest.raises(DataError, match="'the cat' is not a box"):
            rule(["[0.11, 0.22, 0.51, 0.62]"], [plain])


def test_several_right_answers_and_what_sort_of_question_it_is(write):
    rows = [
        {**QUESTION, "answer": ["STOP", 7], "answer_type": "Scene Text-centric VQA", "task": "x"},
        {**QUESTION, "answer": ["STOP"], "task": "Count"},
        {**QUESTION, "task": 3},
    ]
    assert formats.read_test(write(rows)) == [
        TestRecord("1", ("a.png",), "Q", "STOP", ("STOP", "7"), kind="Scene Text-centric VQA"),
        TestRecord("1", ("a.png",), "Q", "STOP", kind="Count"),
        TestRecord("1", ("a.png",), "Q", "A"),
    ]
    with pytest.raises(DataError, match="'answer' is an empty list"):
        formats.read_test(write([{**QUESTION, "answer": []}]))


# ---------------------------------------------------------------------- captions

IMAGES = [7, 3, 5, 9]


@pytest.mark.parametrize(
    "rows",
    [
        [{"question_id": f"q{n}", "image_id": n} for n in IMAGES],
        [{"question_id": f"q{n}", "image_id": float(n)} for n in IMAGES],
        [{"question_id": str(n)} for n in IMAGES],
    ],
    ids=["image_id", "float image_id", "question_id"],
)
def test_captions_are_those_of_the_id(write, rows):
    """Matched by position, perfect answers to these four scored 30.00."""
    notes = [{"image_id": n, "caption": f"a photo of {n} red cups"} for n in sorted(IMAGES)]
    rows = [{**row, "image": "a.png", "text": "<image>\nDescribe."} for row in rows]
    found = formats.read_test(write(rows), write({"annotations": notes}, "coco.json"))
    assert [r.instruction for r in found] == ["Describe."] * 4
    assert [r.references for r in found] == [(f"a photo of {n} red cups",) for n in IMAGES]


def test_captions_without_ids_count_the_questions(write):
    notes = [{"image_id": n, "caption": f"c{n}"} for n in (2, 1)]
    rows = [{"question_id": f"q{n}", "image": "a.png", "text": "Describe."} for n in "ab"]
    found = formats.read_test(write(rows), write({"annotations": notes}, "coco.json"))
    assert [r.answer for r in found] == ["c1", "c2"]


def test_captions_that_do_not_say_whose_they_are(write):
    coco = write({"annotations": [{"image_id": 7, "caption": "c"}]}, "coco.json")
    row = {"question_id": 1, "image": "a.png", "text": "Describe."}
    with pytest.raises(DataError, match=r"record 1: has no image_id, and other questions have one"):
        formats.read_test(write([{**row, "image_id": 7}, row]), coco)
    with pytest.raises(DataError, match=r"coco\.json: no caption for image_id 8 \(record 0 of .*; 1 questions\)"):
        formats.read_test(write([{**row, "image_id": 8}]), coco)
    with pytest.raises(DataError, match="leave out `references`"):
        formats.read_test(write([{"messages": chat("Q", "A")}]), coco)


def test_answers_of_several_people_in_textvqas_layout(write):
    rows = [{**QUESTION, "question_id": n, "answer": "not this"} for n in (34602, 34603)]
    people = [{"question_id": n, "answers": [f"a{n}", "b"], "image_id": "0054"} for n in (34603, 34602)]
    found = formats.read_test(write(rows), write({"dataset_name": "textvqa", "data": people}, "val.json"))
    assert [r.references for r in found] == [("a34602", "b"), ("a34603", "b")]
    assert [r.answer for r in found] == ["a34602", "a34603"]
    with pytest.raises(DataError, match=r"val\.json: no answer for question_id 5 \(record 0 of .*; 1 questions\)"):
        formats.read_test(write([{**QUESTION, "question_id": 5}]), write({"data": people}, "val.json"))
    for broken in ({"question_id": 1}, {"question_id": 1, "answers": []}, {"answers": ["a"]}, 3):
        with pytest.raises(DataError, match=r"val\.json: row 0 of 'data'"):
            formats.read_test(write(rows), write({"data": [broken]}, "val.json"))


def test_a_test_question_of_messages_is_not_taken_for_llavas():
    row = {"question_id": 1, "messages": chat("Q", "A")}
    assert messages.is_row(row)
    assert not llava.is_row(row)
