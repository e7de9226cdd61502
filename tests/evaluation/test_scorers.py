import numpy as np
import pytest

from fcit.data import records
from fcit.errors import DataError
from fcit.evaluation import captions, scorers, wording


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


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
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
        ("stra\u00dfe", "STRASSE", True, True),
        ("caf\u00e9", "cafe\u0301.", False, True),  # composed or not
        ("cafe", "caf\u00e9", False, False),
        ("\uff14\uff12", "42", False, True),  # full-width
        ("\u22125", "5", False, False),  # the minus sign
        ("\u22125", "-5", False, True),
        ("\u0915\u093f", "\u0915\u093e", False, False),  # vowel signs at the end are no punctuation
        ("\u732b\u3002", "\u732b", False, True),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2", True, True),  # final sigma
        ("-5", "5", False, False),
        (".5", "5", False, False),
        ("...", "", False, False),
    ],
)
def test_exact(text, answer, official, cleaned):
    assert right(scorers.exact, text, answer) is official
    assert right(scorers.exact_clean, text, answer) is cleaned


@pytest.mark.parametrize(
    ("text", "official", "cleaned"),
    [
        ("Yes", True, True),
        ("", True, False),  # the empty text is inside every text
        ("e", True, False),
        (" YES ", True, True),
        ("yes it is", False, False),  # the prediction in the answer, not the other way round
        ("no", False, False),
    ],
)
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


@pytest.mark.parametrize(
    ("text", "official"),
    [
        ("0.0, 0.0, 1.0, 1.00", True),  # without brackets the first and last character go all the same
        ("x0.0, 0.0, 1.0, 1.0x", True),
        ("[[0.0, 0.0], [1.0, 1.00]]", True),  # brackets anywhere
        ("[0.0, 0.0, 1.0, 1.00].", True),  # the stop goes for the digit
        ("[0, 0, 1, 1]", False),  # nothing is left of the first number
        ("[0.0 0.0 1.0 1.00]", False),
        ("[0.0, 0.0, 1.0, nan9]", False),
        ("[0.0, 0.0, 1.0, 1e9999]", False),
        ("box: [0.0, 0.0, 1.0, 1.00]", False),
    ],
)
def test_what_the_official_rule_reads_as_a_box(text, official):
    assert right(scorers.box_iou_official, text, "[0.0, 0.0, 1.0, 1.0]") is official


def test_the_official_boxes_are_scaled_before_they_are_compared():
    """The lost digit leaves exactly half of the box: times 612 the IoU comes out at 0.5000000000000001."""
    box = "[0.36, 0.14, 0.89, 0.26]"
    for size, expected in ((None, 0.0), ((612.0, 375.0), 1.0), ((375.0, 612.0), 1.0), ((500.0, 375.0), 0.0)):
        record = records.TestRecord("0", ("a.png",), "?", box, size=size)
        assert scorers.box_iou_official([box], [record]).marks == (expected,), size
        assert scorers.box_iou([box], [record]).marks == (1.0,)


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


#: Perfect, in another order, empty: figures of the rule as it was for ASCII only.
ENGLISH = ("A cat sits on the table.", "Two dogs play in the snow!", "a red cup above the blue fish, isn't it")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (ENGLISH, 99.99999999484623),
        (ENGLISH[1:] + ENGLISH[:1], 9.909294250030312),
        (("a cat on a table", "", "CUP_above-the 2 blue fish"), 44.566530549600394),
        (("", "", ""), 0.0),
    ],
)
def test_ascii_captions_score_as_ever(texts, expected):
    asked = captioned(*((text,) for text in ENGLISH))
    assert captions.caption(texts, asked).score == expected
    assert captions.score(captions.parts(texts, asked).sum(axis=0), 3) == pytest.approx(expected, abs=1e-9)


SCRIPTS = {
    "Chinese": ("一只猫坐在桌子上。", "两只狗在雪地里", "红杯在蓝鱼上面"),
    "Japanese": ("猫がテーブルの上", "犬が雪の中で", "赤いカップ"),
    "Thai": ("แมวนั่งบนโต๊ะ", "สุนัขเล่นหิมะ", "ถ้วยสีแดง"),
    "Russian": ("Кошка сидит на столе", "две собаки играют там", "красная чашка и рыба"),
    "Hindi": ("बिल्ली मेज पर बैठी है", "दो कुत्ते खेल रहे हैं", "लाल प्याला और नीली मछली"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_captions_of_any_script(name):
    """They scored alike, 25.0, whatever was said."""
    wanted = SCRIPTS[name]
    asked = captioned(*((text,) for text in wanted))
    found = [captions.caption(texts, asked).score for texts in (wanted, wanted[1:] + wanted[:1], ("",) * 3)]
    assert found[0] > 70
    assert found[1] < 25
    assert found[2] == 0.0
    for texts, score in zip((wanted, wanted[1:] + wanted[:1], ("",) * 3), found, strict=True):
        assert captions.score(captions.parts(texts, asked).sum(axis=0), 3) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's 2 cafe_s!", ["a", "man's", "2", "cafe", "s"]),
        ("caf\u00e9 CAFE\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("\u4e00\u53ea\u732b cat\u5750\u3002", ["\u4e00", "\u53ea", "\u732b", "cat", "\u5750"]),
        ("\u30e9\u30fc\u30e1\u30f3", ["\u30e9", "\u30fc", "\u30e1", "\u30f3"]),
        ("\u0e19\u0e31\u0e48\u0e07", ["\u0e19\u0e31\u0e48", "\u0e07"]),  # a character with its marks
        ("isn\u2019t \u2018cat\u2019", ["isn't", "cat"]),
        ("\uff14\uff12\u3000\uff21", ["42", "a"]),
        ("\u2764\ufe0f \u2026", []),
        ("co\u00adop", ["coop"]),
    ],
)
def test_words_of_any_script(text, expected):
    assert wording.tokens(text) == expected


@pytest.mark.parametrize("reference", ["", "...", "\u2026"])
def test_an_empty_caption_is_like_nothing(reference):
    asked = captioned((reference,), ("", "a red cup"))
    for texts in (["", ""], ["!", "?"]):
        assert captions.caption(texts, asked).score == 0.0
        assert captions.score(captions.parts(texts, asked).sum(axis=0), 2) == 0.0


def test_a_better_caption_scores_higher():
    wrong, half = ["a dog runs"] * 3, ["red cup", "pink star", "orange flag is gray"]
    assert captions.caption(wrong, CAPTIONS).score < captions.caption(half, CAPTIONS).score < 99


def test_caption_without_references_uses_the_answer():
    alone = asked(*(r.answer for r in CAPTIONS))
    assert captions.caption([r.answer for r in CAPTIONS], alone).score > 99


def test_captions_without_a_word_that_is_compared():
    assert captions.cider({0: [""]}, {0: [""]})[0] == 0
    assert 0 <= captions.caption(["\u732b"], captioned(("\u732b",))).score <= 100


@pytest.mark.parametrize(
    "texts",
    [
        ["red cup is above blue fish", "a dog", "nothing of the kind"],
        ["", "", ""],
        ["red", "red cup", "cup red cup red cup"],
    ],
)
def test_a_caption_score_is_a_function_of_sums(texts):
    parts = captions.parts(texts, CAPTIONS)
    assert captions.score(parts.sum(axis=0), 3) == pytest.approx(captions.caption(texts, CAPTIONS).score, abs=1e-9)
    # drawn anew: the first record twice, the last not at all
    often = np.array([[2, 1, 0], [1, 1, 1]])
    assert captions.score(often @ parts, 3)[1] == pytest.approx(captions.caption(texts, CAPTIONS).score, abs=1e-9)
