"""Clients that answer by themselves: who is asked, what becomes of the scores, what is said of those that cannot."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message

from fcit.config import RunConfig
from fcit.errors import RunError, Unanswered
from fcit.evaluation.following import Followed
from fcit.federation import codec
from fcit.federation.messages import Answers, EvaluateOrder
from server import per_client
from server.checkpoint import Progress
from server.per_client import PerClientEvaluation
from server.scoring import Scored
from tests.helpers.grids import FakeGrid, Story, answer, courier

RECORDS = 4


def says(*texts: str) -> Story:
    def story(message: Message) -> list[Message]:
        order = codec.decode(message.content, EvaluateOrder)
        return [answer(message, Answers(dataset=order.dataset, first=order.first, texts=list(texts), seconds=0.5))]

    return story


def fails(message: Message) -> list[Message]:
    return [Message(Error(code=2, reason="memory-lost"), reply_to=message)]


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def grid() -> FakeGrid:
    made = FakeGrid(n7="0", n8="1", n9="2")
    made.story = {7: says("x", "x"), 8: says("x", "y"), 9: says("y", "y")}
    return made


@pytest.fixture
def made(grid, events, monkeypatch):
    """An evaluation of one data set by the share of x among its answers, and what each client was ordered."""

    def score(benchmark, answers, file: Path) -> Scored:
        share = 100.0 * answers.texts.count("x") / len(answers.texts)
        files.append(str(file))
        return Scored(share, {"strict": share / 2}, Followed({"phrase": RECORDS}, RECORDS - 1, share), None)

    def orders(state, progress, due, nodes, client=None):
        ordered.append((client, nodes))
        plain = {"config": "", "task": "", "names": [], "knowledge": {}, "tensors": {}}
        own = {"client": client, "memory": progress.memories[str(client)]}
        return [(nodes[0], EvaluateOrder(dataset=d, first=f, last=f + 2, **plain, **own)) for d in due for f in (0, 2)]

    files, ordered, untrained = [], [], []
    monkeypatch.setattr(per_client, "score", score)
    monkeypatch.setattr("server.evaluation.checkpoint.save", lambda *parts: None)
    postman = courier(grid, events)
    postman.connect()
    postman.seat({client: node.id for client, node in postman.connected().items()})
    evaluation = PerClientEvaluation(
        RunConfig.model_validate({"evaluation": {"clients": 2}}),
        SimpleNamespace(test=lambda name: [None] * RECORDS),
        SimpleNamespace(path="runs/x", predictions=Path("p"), events="events.jsonl"),
        SimpleNamespace(evaluate=orders, method=None, due=lambda stage: ["a"], untrained=lambda stage: untrained),
        postman,
        lambda kind, **values: events.append({"event": kind, **values}),
    )
    return SimpleNamespace(evaluation=evaluation, files=files, ordered=ordered, untrained=untrained)


def test_a_score_is_the_mean_over_clients_and_each_and_the_worst_are_kept(made, events):
    progress = Progress(memories={"0": "0-1", "1": "0-0"})
    made.evaluation.stage(None, progress)
    assert made.ordered == [(0, [7]), (1, [8])]
    assert made.files == ["p/stage-1/a.client-0.jsonl", "p/stage-1/a.client-1.jsonl"]
    assert progress.row == {"a": 75.0}
    assert progress.extra == {"a": {"strict": 37.5}}
    assert progress.followed == {"a": Followed({"phrase": 8}, 6, 75.0)}
    assert progress.evaluated == ["a"]
    assert progress.per_client == [{"0": {"a": 100.0}, "1": {"a": 50.0}}]
    assert progress.samples == 8
    (scored,) = [e for e in events if e["event"] == "scored"]
    assert (scored["score"], scored["worst"], scored["clients"]) == (75.0, 50.0, 2)
    assert (scored["form_share"], scored["content"]) == (75.0, 75.0)
    results = made.evaluation.by_site(progress)
    assert results["clients"] == {"0": 100.0, "1": 50.0}
    assert results["worst_client"] == {"client": "1", "score": 50.0}


def test_questions_about_what_is_not_trained_yet_are_counted_apart(made):
    made.untrained.append("later")
    progress = Progress(memories={"0": "0-1", "1": "0-0"})
    made.evaluation.stage(None, progress)
    assert (progress.samples, progress.samples_untrained) == (16, 8)
    assert (progress.row, progress.untrained) == ({"a": 75.0}, {"later": 75.0})


def test_clients_are_drawn_by_stage_from_those_that_have_trained(made):
    drawn = set()
    for stage in range(6):
        made.ordered.clear()
        made.evaluation.stage(None, Progress(stage=stage, memories=dict.fromkeys("012", "0-0")))
        again = [client for client, _ in made.ordered]
        made.ordered.clear()
        made.evaluation.stage(None, Progress(stage=stage, memories=dict.fromkeys("012", "0-0")))
        assert [client for client, _ in made.ordered] == again
        drawn.add(tuple(again))
    assert len(drawn) > 1


def test_a_client_that_cannot_answer_is_left_out(made, grid, events):
    grid.story[7] = fails
    progress = Progress(memories={"0": "0-1", "1": "0-0"})
    made.evaluation.stage(None, progress)
    assert progress.per_client == [{"1": {"a": 50.0}}]
    assert {e["client"] for e in events if e["event"] == "evaluate-failed"} == {0}
    assert sorted(grid.asked) == [7, 7, 8, 8]  # nobody else is asked in its place


def test_without_any_the_stage_is_unanswered(made, grid):
    grid.story = dict.fromkeys((7, 8, 9), fails)
    with pytest.raises(Unanswered, match="no client could answer with its own factors"):
        made.evaluation.stage(None, Progress(memories={"0": "0-1"}))


def test_those_that_are_not_connected_are_not_drawn(made):
    made.evaluation.courier.seat({2: 9})
    for stage in range(4):
        progress = Progress(stage=stage, memories=dict.fromkeys("012", "0-0"))
        made.evaluation.stage(None, progress)
        assert progress.per_client == [{"2": {"a": 0.0}}]


@pytest.mark.parametrize("deployed", [True, False])
def test_one_that_has_lost_its_factors_is_left_out_and_starts_afresh(made, grid, events, deployed):
    grid.story[7] = fails
    made.evaluation.courier.deployed = deployed
    progress = Progress(memories={"0": "0-1", "1": "0-0"}, constants={"0": ["kept"]})
    made.evaluation.stage(None, progress)
    assert progress.per_client == [{"1": {"a": 50.0}}]
    assert (progress.memories, progress.constants) == ({"1": "0-0"}, {})
    (lost,) = [e for e in events if e["event"] == "memory-lost"]
    assert (lost["client"], lost["version"], lost["constants"]) == (0, "0-1", ["kept"])


def test_another_failure_stops_a_simulation(made, grid):
    grid.story[7] = lambda message: [Message(Error(code=2, reason="KeyError: x"), reply_to=message)]
    made.evaluation.courier.deployed = False
    with pytest.raises(RunError, match="KeyError: x"):
        made.evaluation.stage(None, Progress(memories={"0": "0-1", "1": "0-0"}))


def test_answers_of_a_client_that_is_left_out_are_removed(made, grid, tmp_path, monkeypatch):
    """It answers one data set and not the other."""
    made.evaluation.run.predictions = tmp_path
    made.untrained.append("later")
    whole = says("x", "x")
    grid.story[7] = lambda m: (fails if codec.decode(m.content, EvaluateOrder).dataset == "later" else whole)(m)
    scored = per_client.score

    def kept(benchmark, answers, file):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        return scored(benchmark, answers, file)

    monkeypatch.setattr(per_client, "score", kept)
    made.evaluation.stage(None, Progress(memories={"0": "0-1", "1": "0-0"}))
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["a.client-1.jsonl", "later.client-1.jsonl"]
