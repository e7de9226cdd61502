"""Shares of answers with the demanded form, and what answers score once their form is mended."""

import numpy as np
import pytest

from fcit import registry
from fcit.data.mini.sources import source_of
from fcit.data.records import TestRecord
from fcit.data.shipped import shipped
from fcit.data.spec import DatasetSpec, read_spec
from fcit.errors import ConfigError
from fcit.evaluation import following
from fcit.evaluation.following import Demand, Followed
from fcit.evaluation.scorers import Result, demands
from tests.helpers.cases import check_each

OPTION = "Which?\nA) red\nB) blue\nAnswer with the option's letter from the given choices directly."


def judged(scorer: str, answers: list[tuple[str, str]], form: str | None = None, question: str = OPTION) -> Followed:
    """Pairs of text and truth, judged by a rule."""
    spec = DatasetSpec(train="a.json", test="b.json", scorer=scorer, form=form)
    records = [TestRecord(str(n), (), question, truth) for n, (_, truth) in enumerate(answers)]
    texts = [text for text, _ in answers]
    return following.followed(spec, texts, records, registry.resolve("scorer", scorer)(texts, records))


def test_share_and_content_by_hand():
    """Right; right but for its form; wrong in form and content; several candidates."""
    found = judged("exact", [("A", "A"), ("(B) blue", "B"), ("The answer is A.", "B"), ("A or B", "A")])
    assert found == Followed({"letter": 4}, 1, 50.0)
    assert found.share == 25.0


def test_answers_in_form_score_what_they_scored():
    found = judged("exact", [("a", "A"), (" B ", "A"), ("C", "A")])
    assert found.content == 100 / 3
    assert found.share == 100.0


def test_normalising_never_takes_credit_away():
    """A rule that finds the truth anywhere in a text credits what is no candidate."""
    found = judged("dcl-contained", [("Left kidney it is", "left kidney"), ("the answer is red", "blue")], "phrase")
    assert found.content == 50.0


def test_questions_that_demand_no_form_are_not_counted():
    found = judged("exact", [("(A)", "A")], question="Which one?")
    assert found == Followed({}, 0, 0.0)
    assert found.share is None


def test_the_data_set_then_the_rule_then_the_question_say_the_form():
    record = TestRecord("0", (), OPTION, "A")

    def form(scorer: str, named: str | None = None) -> str | None:
        return following.demanded(DatasetSpec(train="a", test="b", scorer=scorer, form=named), record)

    assert form("exact", "number") == "number"
    assert form("box-iou", "number") == "number"
    assert form("box-iou") == form("box-iou-official") == "box"
    assert form("caption") == form("caption7") == "sentence"
    assert form("mme") == form("pope") == "yes/no"
    assert form("coin-science") == form("option-letter") == "letter"
    assert form("exact") == "letter"


def test_a_rule_of_the_whole_and_one_of_the_users_own():
    @demands("letter")
    def together(texts, records):
        return Result(100.0 * all(text == record.answer for text, record in zip(texts, records, strict=True)))

    spec = DatasetSpec(train="a", test="b")
    records = [TestRecord("0", (), "?", "A")]
    found = following.followed(spec, ["(A)"], records, together(["(A)"], records), together)
    assert found == Followed({"letter": 1}, 0, 100.0)


def test_captions_keep_their_score_unless_one_is_mended():
    question = "What is happening?\nGenerate a brief caption for the image."
    whole = judged("caption", [("a fish above a star", "a fish above a star")], question=question)
    mended = judged("caption", [("Caption: a fish above a star", "a fish above a star")], question=question)
    assert whole.content == mended.content
    assert (whole.share, mended.share) == (100.0, 0.0)


def test_what_a_data_set_demands_and_whether_its_right_answers_look_so():
    spec, boxes = DatasetSpec(train="a", test="b"), DatasetSpec(train="a", test="b", scorer="box-iou")
    records = [TestRecord("0", (), OPTION, "A"), TestRecord("1", (), OPTION, "red"), TestRecord("2", (), "Why?", "so")]
    assert following.demand(spec, records) == Demand({"letter": 2}, 1, 1)
    assert str(following.demand(spec, records)) == (
        "letter (2), none (1) of 3 questions; right answers that look otherwise: 1"
    )
    assert str(following.demand(boxes, [TestRecord("0", (), "?", "", box="[0, 0, 1, 1]")])) == "box (1) of 1 questions"


def test_a_misspelt_form_is_named_with_those_there_are(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: m\ntasks: [[a]]\ndatasets: {a: {train: a.json, test: b.json, form: leter}}\n")
    with pytest.raises(ConfigError, match=r"unknown name 'leter'; did you mean 'letter'\? \(allowed: box, letter"):
        read_spec(str(file))


def test_right_answers_of_the_built_in_data_sets_look_as_their_questions_demand():
    def check(case: tuple[str, DatasetSpec]) -> None:
        name, spec = case
        rng = np.random.default_rng(0)
        for n in range(20):
            example = source_of(name, "test").maker(rng)
            # The truth itself would have any form; a phrase may be as long.
            record = TestRecord(str(n), (), example.question, " ".join("-" for _ in example.answer.split()))
            form = registry.resolve("form", str(following.demanded(spec, record)))()
            assert form.shaped(example.answer, record), (example.question, example.answer)

    specs = [read_spec(name) for name in shipped()]
    check_each([(name, d) for s in specs if s.source == "mini" for name, d in s.datasets.items()], check)
