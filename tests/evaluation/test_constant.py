"""The best constant answer: what one text to every question scores."""

import pytest

from fcit.data.records import TestRecord
from fcit.evaluation import coco, constant
from fcit.evaluation.captions import caption
from fcit.evaluation.constant import best_constant, without_java
from fcit.evaluation.scorers import Result, corpus, corpus_of, demands


def asked(*answers: str, image: str = "a.png", question: str = "?") -> list[TestRecord]:
    return [TestRecord(str(n), (image,), question, answer) for n, answer in enumerate(answers)]


MANY = ("no", "yes", "yes", "2")


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        ("exact", ("yes", 50.0)),
        ("exact-clean", ("yes", 50.0)),
        ("substring", ("yes", 50.0)),
        ("substring-official", ("", 100.0)),  # nothing is inside every answer
        ("dcl-contained", ("yes no 2", 100.0)),  # all of them at once
        ("dcl-words", ("yes no 2", 100.0)),
        ("dcl-choice", ("yes", 50.0)),
        ("acl-vp", ("yes no 2", 100.0)),  # of all answers together, and not about captions
        ("acl-vp-clean", ("yes no 2", 100.0)),
    ],
)
def test_rules_for_one_answer(scorer, expected):
    assert best_constant(scorer, asked(*MANY)) == expected


def test_lists_of_states():
    records = asked("ohio,texas", "texas,utah", image="MapQA_1.png", question="Which states are red?")
    assert best_constant("dcl-science", records).score == 100.0  # naming more costs nothing
    # 1/3 and 1 of the items in either: better than all three, 2/3 and 2/3
    assert best_constant("dcl-science-clean", records).score == pytest.approx(200 / 3)


def test_boxes():
    records = asked("[0.1, 0.1, 0.9, 0.9]", "[0.2, 0.1, 0.8, 0.9]", "[0.0, 0.0, 0.2, 0.2]", "[0.1, 0.2, 0.9, 0.8]")
    found = best_constant("box-iou", records)
    assert found.score == 75.0
    official = best_constant("box-iou-official", records)
    assert official.score == 75.0
    assert official.text == "[0.100, 0.100, 0.850, 0.850]"


def test_captions():
    """At least what "A." scores, and never more than the truth."""
    records = asked("A cat sits on a mat.", "A dog runs on a field.", "A red cup on a table.")
    found = best_constant("caption", records)
    assert found.score == caption([found.text] * 3, records).score
    assert caption(["A."] * 3, records).score < found.score < 75


def test_official_captions_are_scored_once(monkeypatch):
    seen = []
    rule = demands("sentence")(corpus(slow=True)(lambda texts, records: seen.append(set(texts)) or Result(12.0)))
    monkeypatch.setattr(coco, "caption7", rule)
    found = best_constant("caption7", asked("A cat sits.", "A dog runs."))
    assert found.score == 12.0
    assert seen == [{found.text}]


def test_it_is_scored_on_all_records_and_tried_on_some(monkeypatch):
    monkeypatch.setattr(constant, "SAMPLE", 4)
    records = asked(*["yes", "no"] * 50, "no")
    assert best_constant("exact", records) == ("no", 5100 / 101)


def test_what_cannot_be_asked_has_none(tmp_path, monkeypatch):
    assert best_constant("exact", []) is None
    assert best_constant("box-iou", asked("[0, 0, 1, 1]", "yes")) is None  # no box: told elsewhere
    own = tmp_path / "own.py"
    own.write_text(
        "from fcit.evaluation.scorers import Result\n"
        "def rule(texts, records):\n    return Result(100.0 * (texts[0] == 'yes'))\n"
        "def broken(texts, records):\n    raise KeyError('x')\n"
    )
    assert best_constant(f"{own}:rule", asked(*MANY)) == ("yes", 100.0)
    assert best_constant(f"{own}:broken", asked(*MANY)) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert best_constant("caption7", asked("A cat.")) is None  # no Java


def test_a_slow_rule_has_a_cleaned_one_beside_it_or_stays(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from fcit.evaluation.scorers import Result, corpus\n"
        "@corpus(slow=True)\ndef rule(texts, records):\n    return Result(1.0)\n"
    )
    assert without_java("caption7") == "caption"
    assert without_java("caption") == "caption"
    assert without_java(f"{own}:rule") == f"{own}:rule"


def test_a_rule_that_calls_something_else_its_corpus_is_no_corpus_score():
    def rule(texts, records):
        return Result(1.0)

    vars(rule)["corpus"] = ["some", "texts"]
    assert corpus_of(rule) is None
    assert corpus_of(corpus()(rule)) is not None
