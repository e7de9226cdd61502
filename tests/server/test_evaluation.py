"""Who answers the questions of a stage when sites fail, lie or are silent."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, Message

from fcit.config import RunConfig
from fcit.errors import Unanswered
from fcit.evaluation.predictions import MAX_TEXT
from fcit.federation import codec
from fcit.federation.messages import Answers, EvaluateOrder
from server.asking import MOST
from server.evaluation import Evaluation
from server.loop import Loop
from server.verification import Verification, difference
from tests.helpers.grids import FakeGrid, Story, answer, courier

STEP, RECORDS = 2, 8


def order(first: int) -> EvaluateOrder:
    return EvaluateOrder(
        config="", dataset="a", first=first, last=first + STEP, task="", names=[], knowledge={}, tensors={}
    )


def answers(first: int, *texts: str, **tensors: np.ndarray) -> Answers:
    return Answers(dataset="a", first=first, texts=list(texts), seconds=0.1, tensors=tensors)


def says(*texts: str) -> Story:
    """Answers every stretch with the same texts."""

    def story(message: Message) -> list[Message]:
        return [answer(message, answers(codec.decode(message.content, EvaluateOrder).first, *texts))]

    return story


def fails(message: Message) -> list[Message]:
    return [Message(Error(code=2, reason="data 3"), reply_to=message)]


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def grid() -> FakeGrid:
    made = FakeGrid(n7="0", n8="1", n9="2")
    made.story = dict.fromkeys((7, 8, 9), says("x", "y"))
    return made


def evaluation(grid: FakeGrid, events: list[dict], verify: float = 0.0, **federation) -> Evaluation:
    made = courier(grid, events, **federation)
    made.connect()
    made.seat({client: node.id for client, node in made.connected().items()})

    def orders(state, progress, due, nodes):
        return [(nodes[i % len(nodes)], order(first)) for i, first in enumerate(range(0, RECORDS, STEP))]

    return Evaluation(
        RunConfig.model_validate(
            {"evaluation": {"verify": verify}, "federation": {"timeout": made.federation.timeout}}
        ),
        SimpleNamespace(test=lambda name: [None] * RECORDS),
        SimpleNamespace(path="runs/x"),
        SimpleNamespace(evaluate=orders),
        made,
        lambda kind, **values: events.append({"event": kind, **values}),
    )


def answered(made: Evaluation) -> list[Answers]:
    return list(made._answers(None, SimpleNamespace(stage=0), ["a"]))


def test_every_site_but_one_may_fail(grid, events):
    grid.story[7] = grid.story[8] = fails
    (whole,) = answered(evaluation(grid, events))
    assert whole.texts == ["x", "y"] * 4
    assert {e["client"] for e in events if e["event"] == "evaluate-failed"} == {0, 1}


def test_an_answer_that_no_reader_of_predictions_takes_is_asked_of_another_site(grid, events):
    grid.story[7] = says("x" * (MAX_TEXT + 1), "y")
    (whole,) = answered(evaluation(grid, events))
    assert whole.texts == ["x", "y"] * 4
    reasons = {e["reason"] for e in events if e["event"] == "evaluate-failed"}
    assert reasons == {"an answer to a has 200,001 characters, more than 200,000"}


def test_no_site_is_asked_twice_for_what_it_failed(grid, events):
    grid.story = dict.fromkeys((7, 8, 9), fails)
    with pytest.raises(Unanswered, match="data 3"):
        answered(evaluation(grid, events))
    assert sorted(grid.asked) == [7, 7, 8, 9]


@pytest.mark.parametrize(
    ("policy", "attempts", "pauses"),
    [
        ({"on_too_few": "wait", "pause": 3.0}, 4, [3.0] * 3),
        ({"on_too_few": "retry"}, 2, []),
        ({"on_too_few": "stop"}, 1, []),
    ],
)
def test_questions_that_no_site_can_answer_are_asked_again_as_on_too_few_says(events, policy, attempts, pauses):
    tried, paused = [], []

    def stage(state, progress) -> None:
        tried.append(progress.stage)
        if len(tried) < 4:
            raise Unanswered("no client is connected")

    loop = SimpleNamespace(
        config=RunConfig.model_validate({"federation": policy}),
        courier=SimpleNamespace(deployed=True),
        handshake=SimpleNamespace(update=lambda: None),
        journal=SimpleNamespace(timed=lambda part: nullcontext(), event=lambda kind, **v: events.append(kind)),
        stop=SimpleNamespace(pause=paused.append),
        state=None,
        progress=SimpleNamespace(stage=2),
    )
    with nullcontext() if attempts == 4 else pytest.raises(Unanswered):
        Loop._answered(loop, stage)
    assert tried == [2] * attempts
    assert paused == pauses
    assert events == ["evaluate-again"] * (attempts - 1)


# ---------------------------------------------------------------------- answers of two sites


def test_two_sites_that_answer_alike(grid, events):
    (whole,) = answered(evaluation(grid, events, verify=0.5))
    assert whole.texts == ["x", "y"] * 4
    assert len(grid.asked) == 4 + 2
    assert events == [{"event": "verified", "asked": 2, "compared": 2, "differing": 0}]


def test_two_sites_that_answer_differently_are_told_and_the_first_one_counts(grid, events):
    grid.story[7] = says("x", "lie")
    (whole,) = answered(evaluation(grid, events, verify=1.0))
    assert whole.texts == ["x", "lie", "x", "y", "x", "y", "x", "lie"]
    told = [e for e in events if e["event"] == "answers-differ"]
    assert len(told) >= 2  # both stretches of the liar, and those of others that it was asked again
    assert all(0 in e["clients"] for e in told)
    assert all(len(set(e["clients"])) == 2 for e in told)
    assert "1 of 2 answers to a from record" in told[0]["reason"]
    assert events[-1] == {"event": "verified", "asked": 4, "compared": 4, "differing": len(told)}


def test_at_least_one_stretch_is_compared_and_none_if_none_are_wanted(grid, events):
    answered(evaluation(grid, events, verify=0.001))
    assert len(grid.asked) == 5
    grid.asked.clear()
    answered(evaluation(grid, events, verify=0.0))
    assert len(grid.asked) == 4


def test_one_site_alone_is_compared_with_nobody(grid, events):
    del grid.names[8], grid.names[9]
    (whole,) = answered(evaluation(grid, events, verify=1.0, min_updates=1))
    assert len(whole.texts) == RECORDS
    assert events == []


def test_a_second_answer_that_is_lacking_or_bad_holds_up_nothing(grid, events, monkeypatch):
    monkeypatch.setattr("server.verification._LEAST", 0.1)
    asked: list[int] = []

    def second(message: Message) -> list[Message]:
        asked.append(message.metadata.dst_node_id)
        return [] if len(asked) == 1 else fails(message) if len(asked) == 2 else says("x", "y")(message)

    grid.story = dict.fromkeys((7, 8, 9), second)  # the second answers are asked for first
    (whole,) = answered(evaluation(grid, events, verify=0.5, timeout=3600.0))
    assert whole.texts == ["x", "y"] * 4
    assert [e["event"] for e in events] == ["evaluate-failed", "verified"]
    assert events[-1]["compared"] == 0


def test_which_stretches_are_compared_cannot_be_known_from_the_configuration(grid, events):
    drawn = set()
    while len(drawn) < 2:  # one of four stretches each time
        made = evaluation(grid, events)
        verification = Verification(0.25, made.courier, made.say)
        verification.post([(7, order(first)) for first in range(0, RECORDS, STEP)], "verify")
        drawn |= verification._pairs.keys()


def test_a_second_answer_is_not_asked_for_much_longer_than_it_is_waited_for(grid, events):
    answered(evaluation(grid, events, verify=1.0, timeout=3600.0))
    second, first = list(grid.sent.values())[:4], list(grid.sent.values())[4:]
    assert {message.metadata.ttl for message in second} == {2 * 3600.0 + 60.0}
    assert {message.metadata.ttl for message in first} == {MOST * 3600.0 + 60.0}  # several lie there at a time


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        (answers(4, "x", "y", mix=np.full((2, 2), 0.505, np.float32)), ""),
        (
            answers(4, "x", "z", mix=np.full((2, 2), 0.5, np.float32)),
            "1 of 2 answers to a from record 4 (first: record 5",
        ),
        (answers(4, "x", mix=np.full((2, 2), 0.5, np.float32)), "2 and 1 answers to a from record 4"),
        (answers(4, "x", "y", mix=np.full((2, 2), 0.6, np.float32)), "the mix of a from record 4"),
        (answers(4, "x", "y"), "the mix of a from record 4"),
        (answers(4, "x", "y", mix=np.full((2, 2), np.nan, np.float32)), "the mix of a from record 4"),
    ],
)
def test_how_answers_differ(theirs, problem):
    ours = answers(4, "x", "y", mix=np.full((2, 2), 0.5, np.float32))
    assert difference(ours, theirs).startswith(problem)
    assert bool(difference(ours, theirs)) == bool(problem)
