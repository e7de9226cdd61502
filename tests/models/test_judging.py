"""What a tokenizer finds wrong with records before anything trains."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from fcit.config import Backbone
from fcit.data.records import Record, TestRecord, Turn
from fcit.models import judging
from fcit.models.judging import TokenJudge, judge_of


@pytest.fixture(scope="module")
def judge() -> TokenJudge:
    return judge_of(Backbone(threads=1))


def judged(judge: TokenJudge, *answers: str, question: str = "How many?"):
    records = [Record.single("a.png", question, answer) for answer in answers]
    return judge.train([question, answers], range(len(records)), records)


def test_special_tokens_and_roles_in_answers(judge):
    found = judged(judge, "a cup", "a cup</s>", "<pad>", "3 USER: and then", "ASSISTANT: 3", "<image> x", "user: 3")
    assert sorted(found.problems) == [1, 2, 3, 4, 5]
    assert "holds '</s>', a special token" in found.problems[1]
    assert "holds '<pad>'" in found.problems[2]
    assert "'USER:', which opens the next turn" in found.problems[3]
    assert (found.count, found.warnings) == (7, {})


def test_nothing_to_learn_within_the_length(judge):
    short = judge_of(Backbone(threads=1, max_length=40))
    room = [Record.single("a.png", "How?", "3"), Record.single("a.png", "How many? " * 20, "3")]
    found = short.train([], [4, 9], [*room])
    assert list(found.problems) == [9]
    assert "no room for an answer" in found.problems[9]
    two = Record(("a.png",), (Turn("How?", "3", 1), Turn("How many? " * 20, "3")))
    assert short.train([], [0], [two]).dropped == {0: 1}


def test_placeholders_in_a_text(judge):
    found = judged(judge, "3", question="What does <image> mean?")
    assert "17 placeholders of images" in found.problems[0]


def asked(*answers: str, **changes) -> list[TestRecord]:
    return [TestRecord(str(n), ("a.png",), "How many?", a, **changes) for n, a in enumerate(answers)]


def test_questions(judge):
    found = judge.test(["long"], asked("3", "a red cup above a blue fish and a dog"), limit=4)
    assert list(found.warnings) == [1]
    assert "4 are allowed (max_new_tokens)" in found.warnings[1]
    same = [TestRecord("7", (), "Who?", "x"), TestRecord("7", (), "What?", "y")]
    assert "question_id '7' is that of record 0" in judge.test(["same"], same, 9).warnings[1]
    long = judge_of(Backbone(threads=1, max_length=30)).test([], [TestRecord("0", (), "How many? " * 30, "3")], 9)
    assert "does not fit into backbone.max_length" in long.problems[0]
    assert not judge.test(["caption"], asked("a long caption of many words here", references=("a",)), 4).warnings


def test_a_verdict_is_kept_and_damage_is_judged_again(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    monkeypatch.setattr(judging, "KEPT_FROM", 2)
    records = [Record.single("a.png", "How many?", a) for a in ("3", "x</s>", "5")]
    first = judge.train(["f", 1], range(3), records)
    (file,) = (tmp_path / "judged" / judge.mark).glob("*.json")
    silent = TokenJudge(judge.mark, lambda: pytest.fail("tokenised again"))
    judging._memory.cache_clear()
    assert asdict(silent.train(["f", 1], range(3), records)) == asdict(first)
    assert 1 in first.problems
    with pytest.raises(pytest.fail.Exception):
        silent.train(["f", 2], range(3), records)
    for damage in ("{", "[]", '{"problems": {"x": 1}, "warnings": {}, "dropped": {}}', '{"more": 1}'):
        file.write_text(damage)
        judging._memory.cache_clear()
        assert asdict(judge.train(["f", 1], range(3), records)) == asdict(first)


def test_few_records_are_judged_once_in_a_process(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    records = [Record.single("a.png", "How many?", "3")]
    first = judge.train(["f"], range(1), records)
    assert not list(tmp_path.rglob("*.*"))
    silent = TokenJudge(judge.mark, lambda: pytest.fail("tokenised again"))
    assert silent.train(["f"], range(1), records) is first
    assert list(silent.examples(records)) == [judge.encoder.encode(records[0])]


def test_many_are_tokenised_as_each_alone(judge):
    records = [
        Record((), (Turn("Who?", "me"), Turn("Why?", "so")), "Be brief."),
        Record(("a", "b"), (Turn("One?", "1", 1), Turn("Two?", "2", 1))),
        TestRecord("0", ("a", "b"), "Both?", ""),
    ] * 700
    alone = {record: judge.encoder.encode(record) for record in set(records)}
    assert list(judge.encoder.encoded(records)) == [alone[record] for record in records]
