"""The rules of MLLM-CL's ability part, case by case: (prediction, answer, official, cleaned), and the local ones."""

import pytest

from fcit import registry
from fcit.data.records import TestRecord
from fcit.evaluation import acl

FORMULA = "Handwritten Mathematical Expression Recognition"


def asked(answer: str, *more: str, kind: str = "") -> TestRecord:
    return TestRecord("0", ("a.png",), "?", answer, (answer, *more) if more else (), kind=kind)


def mark(rule, text: str, record: TestRecord) -> float:
    return rule([text], [record]).marks[0]


@pytest.mark.parametrize(
    ("text", "record", "official", "cleaned"),
    [
        ("It says STOP.", asked("stop"), 1, 1),
        ("unstoppable", asked("stop"), 1, 0),
        ("stop", asked("stop here"), 0, 0),
        ("two\nlines", asked("twolines"), 1, 0),
        ("the second one", asked("first", "second"), 1, 1),
        ("anything", asked("", "x"), 1, 0),
        ("x ^ 2", asked("x^2", kind=FORMULA), 1, 1),
        ("y = x^2", asked("x^2", kind=FORMULA), 1, 0),
        ("X^2", asked("x^2", kind=FORMULA), 0, 0),
        ("X^2", asked("x^2", kind="Regular Text Recognition"), 1, 1),
    ],
)
def test_ocr(text, record, official, cleaned):
    assert (mark(acl.ocr, text, record), mark(acl.ocr_clean, text, record)) == (official, cleaned)


@pytest.mark.parametrize(
    ("text", "answer", "official", "cleaned"),
    [
        ("There are 3.", "3", 100, 100),
        ("13", "3", 100, 0),
        ("1. 2", "12", 100, 0),  # blanks and full stops are taken out
        ("Three", "3", 0, 0),
    ],
)
def test_vp(text, answer, official, cleaned):
    record = [asked(answer)]
    assert (acl.vp([text], record).score, acl.vp_clean([text], record).score) == (official, cleaned)


def test_vp_scores_the_counting_questions_where_the_file_names_them():
    records = [asked("3", kind="Count"), asked("left", kind="Relation"), asked("4", kind="Count")]
    for rule in (acl.vp, acl.vp_clean):
        assert rule(["3", "left", "5"], records).score == 50
        assert rule(["3", "right", "5"], records).score == 50
        assert rule(["3", "left", "5"], records).marks is None
    assert acl.vp(["3", "right"], [asked("3"), asked("left")]).score == 50  # no tasks named: all of them


def test_vp_can_be_rebuilt_from_its_parts():
    records = [asked("3", kind="Count"), asked("left", kind="Relation"), asked("4", kind="Count")]
    facts = registry.resolve("scorer", "acl-vp").corpus
    rows = facts.parts(["3", "left", "5"], records)
    assert rows.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert facts.score(rows.sum(axis=0), 3) == 50
    assert facts.score(rows[1], 1) == 0  # a draw of others alone


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("First 3, then 14.", "14", 1),
        ("14 of 3", "14", 0),
        ("It is 1,200 dollars", "1200", 1),
        ("0.50", "0.5", 1),
        ("-2", "2", 0),
        ("no number", "2", 0),
        ("The answer is (B).", "B", 1),
        ("A triangle, so C", "C", 1),
        ("A triangle, so C", "A", 0),
        ("b) the sun", "B", 1),
        ("The states are Ohio", "Ohio", 1),
        ("Ohio or Utah", "Ohio", 0),
        ("yes", "Yes", 1),
    ],
)
def test_mathematics_locally(text, answer, right):
    assert mark(acl.math_local, text, asked(answer)) == right


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("C", "C", 1),
        ("(c) click", "C", 1),
        ("click C", "C", 0),
        ("[0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2, 0.3, 0.4]", 1),
        ("The settings page.", "the settings page", 1),
        ("settings", "the settings page", 0),
    ],
)
def test_gui_locally(text, answer, right):
    assert mark(acl.gui_local, text, asked(answer)) == right


def test_local_rules_are_called_local_and_not_official():
    local = {name for name in registry.SCORERS if name.startswith("acl-") and name.endswith("-local")}
    assert local == {"acl-math-local", "acl-gui-local"}
    assert not local & set(registry.OFFICIAL_RULES)
    for name in local:
        assert "ours and not the official figure" in registry.described(registry.SCORERS[name]).text
