import numpy as np
import pytest

from fcit.data import records
from fcit.evaluation import captions, scorers


def asked(*answers: str) -> list[records.TestRecord]:
    return [records.TestRecord(str(n), "a.png", "?", answer) for n, answer in enumerate(answers)]


def right(rule, text: str, answer: str) -> bool:
    return rule([text], asked(answer)).marks == (1.0,)


def test_score_is_the_share_of_right_answers():
    result = scorers.exact(["A", "b", "c", ""], asked("a", "b", "x", "x"))
    assert (result.score, result.marks) == (50.0, (1.0, 1.0, 0.0, 0.0))


def test_lengths_must_match():
    with pytest.raises(ValueError, match="zip"):
        scorers.exact(["a"], asked("a", "b"))


def test_exact_ignores_case_and_outer_blanks_only():
    assert right(scorers.exact, " Red\n", "red")
    assert not right(scorers.exact, "red.", "red")
    assert not right(scorers.exact, "the red", "red")


@pytest.mark.parametrize(("text", "official", "cleaned"), [
    ("Yes", True, True),
    ("", True, False),  # the empty text is inside every text
    ("e", True, False),
    ("yes it is", False, False),
    ("no", False, False),
])  # fmt: skip
def test_substring(text, official, cleaned):
    assert right(scorers.substring_official, text, "yes") is official
    assert right(scorers.substring, text, "yes") is cleaned


def test_iou_by_hand():
    assert scorers.iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert scorers.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert scorers.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert scorers.iou((0.5, 0, 0, 1), (0, 0, 1, 1)) == 0.0  # sides swapped


def test_box_iou_is_strict():
    box = "[0.00, 0.00, 1.00, 1.00]"
    assert not right(scorers.box_iou, "[0, 0, 1, 0.5]", box)
    assert right(scorers.box_iou, "[0, 0, 1, 0.51]", box)


@pytest.mark.parametrize("text", ["", "here", "[0, 0, 1]", "[0, 0, 1, 1, 1]", "[0, 0, one, 1]"])
def test_box_that_cannot_be_read(text):
    assert not right(scorers.box_iou, text, "[0, 0, 1, 1]")
    assert not right(scorers.box_iou_official, text, "[0, 0, 1, 1]")


def test_official_box_loses_the_last_digit():
    box = "[0.00, 0.00, 1.00, 0.09]"  # y2 is read as 0.0
    assert right(scorers.box_iou, box, box)
    assert not right(scorers.box_iou_official, box, box)


def test_official_box_loses_the_first_digit():
    box = "[1.0, 0.0, 2.0, 1.00]"  # x1 is read as .0, so the box is twice as wide: exactly 0.5
    assert not right(scorers.box_iou_official, box, box)
    assert right(scorers.box_iou_official, "[0.0, 0.0, 1.0, 1.00]", "[0.0, 0.0, 1.0, 1.00]")


def captioned(*references: tuple[str, ...]) -> list[records.TestRecord]:
    return [records.TestRecord(str(n), "a.png", "?", r[0], r) for n, r in enumerate(references)]


CAPTIONS = captioned(
    ("red cup is above blue fish", "blue fish is below red cup"),
    ("green tree is left of pink star", "pink star is right of green tree"),
    ("gray moon is below orange flag", "orange flag is above gray moon"),
)


def test_caption_ends_of_the_scale():
    perfect = scorers.caption([r.references[0] for r in CAPTIONS], CAPTIONS)
    assert perfect.marks is None
    assert 99 < perfect.score <= 100.0001
    assert scorers.caption(["Red cup is above blue fish!"] + [r.answer for r in CAPTIONS[1:]], CAPTIONS) == perfect
    assert scorers.caption([""] * 3, CAPTIONS).score == pytest.approx(0, abs=1e-3)


def test_a_better_caption_scores_higher():
    wrong, half = ["a dog runs"] * 3, ["red cup", "pink star", "orange flag is gray"]
    assert scorers.caption(wrong, CAPTIONS).score < scorers.caption(half, CAPTIONS).score < 99


def test_caption_without_references_uses_the_answer():
    alone = asked(*(r.answer for r in CAPTIONS))
    assert scorers.caption([r.answer for r in CAPTIONS], alone).score > 99


@pytest.mark.parametrize("texts", [
    ["red cup is above blue fish", "a dog", "nothing of the kind"],
    ["", "", ""],
    ["red", "red cup", "cup red cup red cup"],
])  # fmt: skip
def test_a_caption_score_is_a_function_of_sums(texts):
    parts = captions.parts(texts, CAPTIONS)
    assert captions.score(parts.sum(axis=0), 3) == pytest.approx(scorers.caption(texts, CAPTIONS).score, abs=1e-9)
    # drawn anew: the first record twice, the last not at all
    often = np.array([[2, 1, 0], [1, 1, 1]])
    assert captions.score(often @ parts, 3)[1] == pytest.approx(scorers.caption(texts, CAPTIONS).score, abs=1e-9)
