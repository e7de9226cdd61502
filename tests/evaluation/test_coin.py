"""The rules of CoIN and of its federated version, case by case: (prediction, answer, official, cleaned)."""

import pytest

from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation import coin, dcl, fmcl, scorers


def mark(rule, text: str, answer: str, references: tuple[str, ...] = ()) -> float:
    return rule([text], [TestRecord("0", ("a.png",), "?", answer, references)]).marks[0]


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("B", "B", 1, 1),
        ("B. the sun", "B", 1, 1),
        ("b", "B", 1, 1),
        ("(B)", "B", 1, 1),
        ("B) the sun", "B", 1, 1),
        ("The answer is B", "B", 1, 0),
        ("Because of the sun", "B", 0, 0),
        ("a cat", "A", 1, 0),  # the article
        ("it's B", "B", 0, 0),  # the s behind the apostrophe stands alone before it
        ("7", "A", 0, 0),
        ("F", "F", 0, 1),  # the script knows five letters
        ("", "A", 0, 0),
    ],
)
def test_scienceqa(text, answer, official, cleaned):
    assert (mark(coin.science, text, answer), mark(coin.option_letter, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("goldfish", "goldfish", 1, 1),
        ("Goldfish", "goldfish", 0, 1),
        ("a goldfish", "goldfish", 1, 0),
        ("gold", "goldfish", 1, 0),
        ("", "goldfish", 1, 0),
        ("tench", "tench, Tinca tinca", 1, 1),
        ("hen", "tench, Tinca tinca", 0, 0),
    ],
)
def test_imagenet(text, answer, official, cleaned):
    assert (mark(coin.imagenet, text, answer), mark(coin.imagenet_clean, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("Yes", "yes", 1, 1),
        ("yes...", "yes", 1, 1),
        ("yes!", "yes", 0, 1),
        ("yes", "Yes", 0, 1),
        ("blue", "light blue", 0, 0),
    ],
)
def test_gqa(text, answer, official, cleaned):
    assert (mark(coin.gqa, text, answer), mark(scorers.exact_clean, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official"),
    [
        ("jane roe", "Jane Roe", 1),
        ("Jane Roe.", "Jane Roe", 0),
        ("Jane Roe", "Jane Roe ", 0),
        ("Unanswerable", "Unanswerable", 0),
        ("unanswerable", "unanswerable", 1),
    ],
)
def test_ocrvqa(text, answer, official):
    assert mark(coin.ocrvqa, text, answer) == official


# ---------------------------------------------------------------------- TextVQA


@pytest.mark.parametrize(
    ("count", "score"),
    # of ten: (n min(1, (n - 1) / 3) + (10 - n) min(1, n / 3)) / 10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_textvqa_counts_how_many_of_ten_agree(count, score):
    answers = ("nokia",) * count + ("nothing",) * (10 - count)
    assert mark(coin.textvqa, "Nokia", "nokia", answers) == pytest.approx(score)
    assert mark(coin.textvqa_clean, "Nokia.", "nokia", answers) == pytest.approx(score)


def test_textvqa_needs_ten_answers_and_ours_does_not():
    with pytest.raises(DataError, match=r"question '0': 0 answers, and TextVQA's rule counts ten"):
        mark(coin.textvqa, "nokia", "nokia")
    assert mark(coin.textvqa_clean, "nokia", "nokia") == 1
    assert mark(coin.textvqa_clean, "samsung", "nokia") == 0


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Nokia", "nokia"),
        ("two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("a  b\nc", "b c"),
        ("John's", "john 's"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("no.", "no"),
        ("U.S.A.", "usa"),
        ("coca-cola", "coca cola"),
        ("coca - cola", "coca cola"),
        ("half- and full-time", "half and fulltime"),  # one hyphen beside a blank: both are removed
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("shed've", "she'd've"),
        ("shed", "shed"),
        ("itll", "it'll"),
        ("im", "im"),  # the table has "Im", which a text in lower case never is
        ("somebody'd", "somebodyd"),
        ("what?", "what"),
    ],
)
def test_how_vqa_makes_answers_comparable(text, plain):
    assert coin.evalai(text) == plain


# ---------------------------------------------------------------------- POLARIS-FMCL


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [("B", "b ", 1, 1), ("B.", "B", 0, 1), ("hen", "Hen", 1, 1)],
)
def test_fmcl_choices_and_classes(text, answer, official, cleaned):
    assert (mark(fmcl.equal, text, answer), mark(scorers.exact_clean, text, answer)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("It is Red", "red ", 1, 1),
        ("nothing", "no", 1, 0),
        ("12", "2", 1, 0),
        ("red", "dark red", 0, 0),
        ("x", "", 1, 0),
    ],
)
def test_fmcl_open_questions(text, answer, official, cleaned):
    assert (mark(fmcl.contained, text, answer), mark(dcl.whole_words, text, answer)) == (official, cleaned)
