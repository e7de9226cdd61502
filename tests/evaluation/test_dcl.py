"""The rules of MLLM-CL's domain part, case by case: (prediction, answer, official, cleaned)."""

import pytest

from fcit import registry
from fcit.data.records import TestRecord
from fcit.evaluation import dcl


def mark(rule, text: str, answer: str, image: str = "RS/images/1.png", question: str = "?") -> float:
    return rule([text], [TestRecord("0", (image,), question, answer)]).marks[0]


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("Yes", "yes", 1, 1),
        ("no", "yes", 0, 0),
        # one word: anywhere in it
        ("yes.", "yes", 1, 1),
        ("nothing", "no", 1, 0),
        ("12", "2", 1, 0),
        ("", "no", 0, 0),
        # several words: beside a blank, a stop or a comma, on one side at least
        ("it is yes", "yes", 1, 1),
        ("yes, it is", "yes", 1, 1),
        ("(yes) it is", "yes", 0, 1),
        ("it is not", "no", 1, 0),
        ("between 10 and 20", "0", 1, 0),
        ("about 2.5 of them", "2", 1, 0),
        # the answer's own full stops are dropped where it has no blank
        ("Yes", "Yes.", 1, 1),
        ("a 25 m road", "2.5", 1, 0),
        # an answer with a blank: anywhere, as it is
        ("I turn left now", "Turn left", 1, 1),
        ("turn left", "turn left.", 0, 1),
        ("return left", "turn left", 1, 0),
        # an empty answer is in everything
        ("anything at all", "", 1, 0),
        # skipped, so wrong
        ("Unanswerable", "unanswerable", 0, 1),
        ("Unanswerable, yes", "yes", 0, 1),
        ("unanswerable, yes", "yes", 1, 1),
    ],
)
def test_rs_and_ad(text, answer, official, cleaned):
    assert (mark(dcl.words, text, answer), mark(dcl.whole_words, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("No", "no", 1, 1),
        ("normal", "no", 1, 0),
        ("in the Lung tissue", "lung", 1, 1),
        ("lung", "in the lung", 0, 0),
        ("lung", "lung.", 0, 1),
        ("", "", 1, 1),
        ("lung", "", 1, 0),
        ("Unanswerable: lung", "lung", 0, 1),
    ],
)
def test_med(text, answer, official, cleaned):
    assert (mark(dcl.contained, text, answer), mark(dcl.whole_words, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    "image", ["AI2D_3.png", "Sci/images/TQA_1.jpg", "Sci/images/VQA_1_2.png", "Sci/images/SciVerse_9.png"]
)
@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("b", "B", 1, 1),
        ("B.", "B", 0, 1),
        ("B) the sun", "B", 0, 0),
        ("B", "B ", 0, 1),
        ("Unanswerable", "Unanswerable", 0, 1),
    ],
)
def test_science_compared_whole(image, text, answer, official, cleaned):
    found = mark(dcl.science, text, answer, image), mark(dcl.science_clean, text, answer, image)
    assert found == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("Texas,Ohio", "texas,ohio", 1, 1),
        ("Texas", "Texas,Ohio", 1 / 2, 1 / 2),
        ("Ohio, Texas", "Texas, Ohio", 0, 1),  # neither " ohio" nor "texas" is among "ohio", " texas"
        ("Texas, Ohio", "Texas,Ohio", 1 / 2, 1),
        ("Texas,Ohio,Utah,Iowa", "Texas,Ohio", 1, 1 / 2),  # naming more costs nothing officially
        ("Texas or Ohio", "Texas,Ohio", 0, 0),
        ("", "Texas,Ohio", 0, 0),
        ("Unanswerable", "Texas", 0, 0),
    ],
)
def test_science_states_of_a_map(text, answer, official, cleaned):
    asked = {"image": "Sci/images/MapQA_7.png", "question": "Which states have a value above 5?"}
    found = mark(dcl.science, text, answer, **asked), mark(dcl.science_clean, text, answer, **asked)
    assert found == (pytest.approx(official), pytest.approx(cleaned))


@pytest.mark.parametrize(
    "image",
    [
        "Sci/images/VQA/12.png",
        "AI2D/images/MapQA_1.png",
        "Sci/images/AI2Dx_1.png",
        "Sci/images/TQA.png",
        "Sci/images/ai2d_1.png",
        "Sci/images/VQA2_1.png",
    ],
)
def test_the_source_of_an_image_is_its_name_up_to_the_first_underscore(image):
    """``image.split('/')[-1].split('_')[0]`` in eval_sci.py: folders and longer names do not count."""
    assert mark(dcl.science, "it is B", "b", image) == 1  # as MapQA: contained
    assert mark(dcl.science, "it is B", "b", "Sci/images/VQA_1.png") == 0


@pytest.mark.parametrize(("question", "official"), [("Is it so?", 1), ("which states?", 1), ("Which states?", 0)])
def test_science_other_questions_about_maps(question, official):
    asked = {"image": "Sci/images/MapQA_7.png", "question": question}
    assert mark(dcl.science, "the answer is No.", "no", **asked) == official
    assert mark(dcl.science, "north", "no", image="MapQA_7.png", question="Is it so?") == 1
    assert mark(dcl.science_clean, "north", "no", image="MapQA_7.png", question="Is it so?") == 0


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("\u4e00\u53ea\u732b\u5750\u7740", "\u732b", 1),  # no blanks around a Chinese word
        ("\u662fcat\u5417", "cat", 1),
        ("concat\u5417", "cat", 0),
        ("\u0e17\u0e35\u0e48", "\u0e17", 0),  # without its vowel and tone it is another syllable
        ("\u0e17\u0e35\u0e48", "\u0e17\u0e35\u0e48", 1),
        ("\u0915\u093f", "\u0915", 0),  # a vowel sign goes on a word
        ("un cafe\u0301 noir", "caf\u00e9", 1),
        ("un caf\u00e9", "caf", 0),
        ("\uff14\uff12 m", "42", 1),
        ("\u0434\u043e\u043c\u0430", "\u0434\u043e\u043c", 0),
        ("a b c b2", "b", 1),
        ("xb b", "b", 1),
        ("b2 3b", "b", 0),
        ("2.5", "5", 0),
        ("2. 5", "5", 1),
        ("5.", "5", 1),
    ],
)
def test_whole_words_of_any_script(text, answer, expected):
    assert mark(dcl.whole_words, text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("\u0915\u093f", "\u0915\u093e", 0),  # told apart by vowel signs
        ("\uff21.", "a", 1),
        ("cafe\u0301", "caf\u00e9", 1),
        ("cafe", "caf\u00e9", 0),
    ],
)
def test_choices_of_any_script(text, answer, expected):
    assert mark(dcl.choice_clean, text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("A", "a", 1, 1),
        (" A . ", "A", 1, 1),
        ("Y e s.", "yes", 1, 1),
        ("(A)", "A", 0, 1),
        ("A. rise", "A", 0, 0),
        ("A", "A.", 0, 1),
        ("Unanswerable", "unanswerable", 0, 1),
    ],
)
def test_fin(text, answer, official, cleaned):
    assert (mark(dcl.choice, text, answer), mark(dcl.choice_clean, text, answer)) == (official, cleaned)


def test_a_skipped_prediction_stays_in_the_denominator():
    records = [TestRecord(str(n), ("a.png",), "?", "yes") for n in range(4)]
    result = dcl.words(["yes", "Unanswerable", "yes", "no"], records)
    assert (result.score, result.marks) == (50.0, (1, 0, 1, 0))


def test_every_official_rule_has_a_cleaned_one_beside():
    records = [TestRecord("0", ("a.png",), "?", "yes", ("yes",) * 10)]
    for official, cleaned in registry.OFFICIAL_RULES.items():
        assert cleaned in registry.SCORERS
        assert cleaned not in registry.OFFICIAL_RULES
        if official not in ("caption7", "box-iou-official", "coin-science"):
            both = [registry.resolve("scorer", name)(["yes"], records).score for name in (official, cleaned)]
            assert both == [100, 100]
