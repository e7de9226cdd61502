import numpy as np
import pytest

from fcit.data import records
from fcit.errors import DataError
from fcit.evaluation import captions, scorers


def asked(*answers: str) -> list[records.TestRecord]:
    return [records.TestRecord(str(n), ("a.png",), "?", answer) for n, answer in enumerate(answers)]


def right(rule, text: str, answer: str) -> bool:
    return rule([text], asked(answer)).marks == (1.0,)


def test_score_is_the_share_of_right_answers():
    result = scorers.exact(["A", "b", "c", ""], asked("a", "b", "x", "x"))
    assert (result.score, result.marks) == (50.0, (1.0, 1.0, 0.0, 0.0))


def test_lengths_must_match():
    with pytest.raises(ValueError, match="zip"):
        scorers.exact(["a"], asked("a", "b"))


@pytest.mark.parametrize(("text", "answer", "official", "cleaned"), [
    ("Red", "red", True, True),
    (" Red\n", "red", True, True),  # as the generator writes it: stripped
    ("red", "red ", False, True),  # ground truths are not stripped
    ("red.", "red", False, True),  # no punctuation is normalised
    ("(B)", "B", False, True),
    ("the red", "red", False, False),  # no articles either
    ("red fish", "red", False, False),  # the laxer "contained" is not in force
    ("red", "red fish", False, False),
    ("", "red", False, False),
    ("4.0", "4", False, False),  # nor are numbers compared as numbers
    ("stra\u00dfe", "STRASSE", True, False),  # upper-cased, not lower-cased
    ("-5", "5", False, False),
    (".5", "5", False, False),
    ("...", "", False, False),
])  # fmt: skip
def test_exact(text, answer, official, cleaned):
    assert right(scorers.exact, text, answer) is official
    assert right(scorers.exact_clean, text, answer) is cleaned


@pytest.mark.parametrize(("text", "official", "cleaned"), [
    ("Yes", True, True),
    ("", True, False),  # the empty text is inside every text
    ("e", True, False),
    (" YES ", True, True),
    ("yes it is", False, False),  # the prediction in the answer, not the other way round
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


def test_the_official_box_of_the_example():
    """Of "[0.12, 0.30, 0.55, 0.61]" the numbers .12, 0.30, 0.55 and 0.6 are read, of the answer all digits."""
    text = "[0.12, 0.30, 0.55, 0.61]"
    # y2 is 0.6 and not 0.61: that much of the box is enough for one answer and not for the other
    assert right(scorers.box_iou_official, text, "[0.12, 0.30, 0.55, 0.89]")  # 0.30 of 0.59
    assert right(scorers.box_iou, text, "[0.12, 0.30, 0.55, 0.91]")  # 0.31 of 0.61
    assert not right(scorers.box_iou_official, text, "[0.12, 0.30, 0.55, 0.91]")  # 0.30 of 0.61


@pytest.mark.parametrize(("text", "official"), [
    ("0.0, 0.0, 1.0, 1.00", True),  # without brackets the first and last character go all the same
    ("x0.0, 0.0, 1.0, 1.0x", True),
    ("[[0.0, 0.0], [1.0, 1.00]]", True),  # brackets anywhere
    ("[0.0, 0.0, 1.0, 1.00].", True),  # the stop goes for the digit
    ("[0, 0, 1, 1]", False),  # nothing is left of the first number
    ("[0.0 0.0 1.0 1.00]", False),
    ("[0.0, 0.0, 1.0, nan9]", False),
    ("[0.0, 0.0, 1.0, 1e9999]", False),
    ("box: [0.0, 0.0, 1.0, 1.00]", False),
])  # fmt: skip
def test_what_the_official_rule_reads_as_a_box(text, official):
    assert right(scorers.box_iou_official, text, "[0.0, 0.0, 1.0, 1.0]") is official


def test_a_box_that_does_not_parse_stays_in_the_denominator():
    box = "[0.0, 0.0, 1.0, 1.0]"
    assert scorers.box_iou_official(["[0.0, 0.0, 1.0, 1.00]", "here"], asked(box, box)).score == 50


@pytest.mark.parametrize("answer", ["yes", "[0.1, 0.2, 0.3]"])
def test_a_ground_truth_that_is_no_box_is_told(answer):
    for rule in (scorers.box_iou, scorers.box_iou_official):
        with pytest.raises(DataError, match=r"question '0': the answer .* is not a box like"):
            rule(["[0, 0, 1, 1]"], asked(answer))


def test_a_ground_truth_may_be_written_with_exponents():
    assert right(scorers.box_iou, "[0, 0, 1, 1]", "[1e-05, 0.0, 1.0, 1.0]")


def captioned(*references: tuple[str, ...]) -> list[records.TestRecord]:
    return [records.TestRecord(str(n), ("a.png",), "?", r[0], r) for n, r in enumerate(references)]


CAPTIONS = captioned(
    ("red cup is above blue fish", "blue fish is below red cup"),
    ("green tree is left of pink star", "pink star is right of green tree"),
    ("gray moon is below orange flag", "orange flag is above gray moon"),
)


def test_caption_ends_of_the_scale():
    perfect = captions.caption([r.references[0] for r in CAPTIONS], CAPTIONS)
    assert perfect.marks is None
    assert 99 < perfect.score <= 100.0001
    assert captions.caption(["Red cup is above blue fish!"] + [r.answer for r in CAPTIONS[1:]], CAPTIONS) == perfect
    assert captions.caption([""] * 3, CAPTIONS).score == pytest.approx(0, abs=1e-3)


def test_a_better_caption_scores_higher():
    wrong, half = ["a dog runs"] * 3, ["red cup", "pink star", "orange flag is gray"]
    assert captions.caption(wrong, CAPTIONS).score < captions.caption(half, CAPTIONS).score < 99


def test_caption_without_references_uses_the_answer():
    alone = asked(*(r.answer for r in CAPTIONS))
    assert captions.caption([r.answer for r in CAPTIONS], alone).score > 99


def test_captions_without_a_word_that_is_compared():
    assert captions.cider({0: [""]}, {0: [""]})[0] == 0
    assert 0 <= captions.caption(["\u732b"], captioned(("\u732b",))).score <= 100


@pytest.mark.parametrize("texts", [
    ["red cup is above blue fish", "a dog", "nothing of the kind"],
    ["", "", ""],
    ["red", "red cup", "cup red cup red cup"],
])  # fmt: skip
def test_a_caption_score_is_a_function_of_sums(texts):
    parts = captions.parts(texts, CAPTIONS)
    assert captions.score(parts.sum(axis=0), 3) == pytest.approx(captions.caption(texts, CAPTIONS).score, abs=1e-9)
    # drawn anew: the first record twice, the last not at all
    often = np.array([[2, 1, 0], [1, 1, 1]])
    assert captions.score(often @ parts, 3)[1] == pytest.approx(captions.caption(texts, CAPTIONS).score, abs=1e-9)
