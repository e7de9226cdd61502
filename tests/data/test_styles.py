from collections import Counter

import numpy as np
import pytest

from fcit.data.records import Record, Turn
from fcit.data.styles import OPTIONS, STYLES, in_styles, restyled

LINE = "Answer with a single word."
ANSWERS = ["red", "green", "blue", "Yellow", "two cups"]


def shard(count: int = 40, line: str = LINE) -> list[Record]:
    return [Record.single(f"{n}.png", f"What is {n}?\n{line}", ANSWERS[n % len(ANSWERS)]) for n in range(count)]


def test_a_share_is_rewritten_and_again_the_same():
    written = restyled(shard(), 0.2, 0, 3, 1)
    assert len(written) == 8
    assert restyled(shard(), 0.2, 0, 3, 1) == written
    assert restyled(shard(), 0.2, 0, 4, 1) != written
    assert restyled(shard(), 0.2, 1, 3, 1) != written
    assert restyled(shard(), 0.0, 0, 3, 1) == {}
    for place, record in written.items():
        assert record.images == (f"{place}.png",)
        assert record.turns[0].images == 1
        assert record.turns[0].question.startswith(f"What is {place}?\n")
        assert LINE not in record.turns[0].question


def test_every_style_gets_its_part():
    questions = [record.turns[0].question for record in restyled(shard(), 0.5, 0, 1).values()]
    ends = {question.rpartition("\n")[2].rpartition(" ")[2] for question in questions}
    assert len(questions) == 20
    assert ends == {"no.", "option.", "sentence.", "detail."}
    assert sum(question.endswith("option.") for question in questions) == 5


@pytest.mark.parametrize(("count", "share"), [(5, 0.2), (16, 0.2)])
def test_small_shards_get_every_style_equally_often(count, share):
    """One record each, or three: over 200 shards a quarter of them per style, within four standard deviations."""
    owners = 200
    written = [record for owner in range(owners) for record in restyled(shard(count), share, 0, owner).values()]
    ends = Counter(record.turns[0].question.rpartition(" ")[2] for record in written)
    assert len(written) == owners * round(share * count)
    assert ends.keys() == {"no.", "option.", "sentence.", "detail."}
    assert all(abs(number - len(written) / 4) < 4 * (owners * 3 / 16) ** 0.5 for number in ends.values())


def test_a_line_that_only_some_questions_have_is_kept():
    records = [*shard(), Record.single("x.png", "Why?", "red")]
    assert all(LINE in record.turns[0].question for place, record in restyled(records, 0.5, 0, 1).items() if place < 40)


@pytest.mark.parametrize("seed", range(4))
def test_rewritten_answers_are_true(seed):
    yes_no, choice, brief, detailed = STYLES
    rng, others = np.random.default_rng(seed), ["green", "blue"]
    question, answer = yes_no("Q?", "red", others, rng)
    assert ('"red"' in question) == (answer == "Yes")
    question, answer = choice("Q?", "red", others, rng)
    assert f"\n{answer}. red\n" in question
    assert question.count("\n") == 4
    assert brief("Q?", "Red.", others, rng)[1] == "The answer is Red."
    assert detailed("Q?\nmore", "red", others, rng)[1] == 'The question is "Q?". The answer to it is red.'


def test_what_cannot_be_rewritten_stays():
    talk = Record(("a.png",), (Turn("Q?", "red", 1), Turn("And?", "blue")))
    long = Record.single("b.png", "Q?", "a red cup stands on the left of a blue fish")
    assert restyled([talk] * 3 + [long] * 3 + shard(6, ""), 0.99, 0, 1).keys() <= set(range(6, 12))
    assert restyled([Record.single("a.png", "Q?", "red")] * 9, 0.99, 0, 1) == {}  # there is no other answer


def test_what_no_longer_fits_stays():
    records = shard()
    written = restyled(records, 0.2, 0, 3, 1)
    short = in_styles(records, 0.2, lambda new: [len(r.turns[0].question) < 60 for r in new], 0, 3, 1)
    kept = {place for place, record in written.items() if len(record.turns[0].question) < 60}
    assert kept < written.keys()
    assert {place for place, record in enumerate(short) if record != records[place]} == kept


def test_options_differ():
    for record in restyled(shard(60), 0.9, 0, 1).values():
        lines = [line[3:].casefold() for line in record.turns[0].question.split("\n") if line[1:3] == ". "]
        assert len(set(lines)) == len(lines)
        assert len(lines) <= OPTIONS + 1
