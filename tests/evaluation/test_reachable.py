"""Truths that their rule can never give a mark for."""

import time

import pytest

from fcit import registry
from fcit.data.records import TestRecord
from fcit.evaluation.reachable import unreachable, untokenisable


def asked(*answers: str, **more) -> list[TestRecord]:
    return [TestRecord(str(n), ("AI2D_1.png",), "?", answer, **more) for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("scorer", "good", "bad", "why"),
    [
        ("exact", "red", "red ", "begins or ends with blanks"),
        ("dcl-science", "B", " B", "begins or ends with blanks"),
        ("dcl-choice", "A", "A.", "taken out of the prediction"),
        ("dcl-choice", "Yes", "not sure", "taken out of the prediction"),
        ("dcl-contained", "lung", "lung ", "begins or ends with blanks"),
        ("dcl-words", "yes", "Unanswerable", "never right"),
        ("substring", "yes", "", "not even word for word"),
        ("box-iou", "[0, 0, 1, 1]", "yes", "is not a box like"),
        ("box-iou", "[0, 0, 1, 1]", "[0.5, 0.5, 0.5, 0.5]", "not even word for word"),
        ("box-iou-official", "[0.10, 0.10, 0.90, 0.90]", "[0.00, 0.00, 1.00, 0.09]", "without its last digit"),
    ],
)
def test_what_its_own_answer_does_not_score(scorer, good, bad, why):
    found = unreachable(scorer, asked(good, bad, good))
    assert list(found) == [1]
    assert why in found[1]


@pytest.mark.parametrize("scorer", ["exact", "exact-clean", "substring-official", "dcl-contained"])
def test_an_empty_answer_is_told_of(scorer):
    """Every prediction holds it, or none but an empty one is it."""
    assert unreachable(scorer, asked("a", " ", "b")).keys() == {1}
    assert "empty" in unreachable(scorer, asked("a", "", "b"))[1]
    assert unreachable(scorer, asked("", references=("", "a"))) == {}


@pytest.mark.parametrize("scorer", ["exact-clean", "substring-official", "dcl-choice-clean", "dcl-words-clean"])
def test_rules_that_forgive_blanks(scorer):
    assert unreachable(scorer, asked("red", "red ")) == {}


@pytest.mark.parametrize("scorer", ["caption", "caption7"])
def test_captions_without_a_word(scorer):
    records = [*asked("a cat"), *asked("..."), *asked("", references=("", "a cat")), *asked("", references=("", "!"))]
    found = unreachable(scorer, records)
    assert list(found) == [1, 3]
    assert found[3] == "none of its 2 reference captions has a word in it"


def test_a_rule_of_all_answers_together_that_is_not_about_captions():
    assert unreachable("acl-vp", asked("...")) == {}


def test_own_rules_are_not_asked_and_no_records_are_fine():
    assert unreachable("./nowhere.py:rule", asked("a")) == {}
    assert {name: unreachable(name, []) for name in registry.SCORERS} == {name: {} for name in registry.SCORERS}


def test_ten_thousand_answers_take_seconds_of_a_core_at_most():
    records = asked(*(f"answer {n} of many" for n in range(10_000)))
    for name in registry.SCORERS:
        begin = time.process_time()
        unreachable(name, records)  # for the box rules, every single one is told
        assert time.process_time() - begin < 10, name


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("一只猫坐在桌子上。", "一只猫坐在桌子上"),
        ("A red 猫がいる", "猫がいる"),
        ("แมวนั่ง", "แมวนั่ง"),
        ("A cat named 猫", ""),  # one character is a word to any tokenizer
        ("кошка сидит", ""),
        ("고양이가 앉아 있다", ""),
        ("a café", ""),
    ],
)
def test_captions_that_the_official_tokenizer_takes_as_one_word(caption, told):
    found = untokenisable(asked("a dog", caption, caption))
    assert list(found) == ([1, 2] if told else [])
    assert not told or (repr(told) in found[1] and "`scorer: caption`" in found[1])


def test_a_box_is_reached_whatever_the_answer_says():
    records = [TestRecord("0", ("a.png",), "?", "the cat", box="[0.1, 0.1, 0.9, 0.9]")]
    assert unreachable("box-iou", records) == {}
