"""Which data sets are asked that are not trained (yet), of whom, and that an interruption loses no answer."""

from types import SimpleNamespace

import pytest

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.errors import Unanswered
from fcit.evaluation.following import Followed
from fcit.federation.messages import Answers
from server import evaluation as module
from server.checkpoint import Progress
from server.evaluation import Evaluation
from server.orders import Orders
from server.scoring import Scored

#: Tasks of the published heterogeneous lists that begin after the first stage.
LATE = {"clevr-math": 2, "super-clevr": 2, "imagenet-r": 3}


def orders(**raw) -> Orders:
    config = configuration.parse({"benchmark": "fcit-mini-task", "method": "finetune", **raw})
    method, fedopt = (registry.resolve(kind, getattr(config, kind)["name"])(config) for kind in ("method", "fedopt"))
    return Orders(config, open_benchmark(config), method, fedopt)


def asked(made: Orders) -> list[list[str]]:
    """By stage, the untouched model first."""
    return [made.untrained(stage) for stage in range(-1, made.stream.stage_count)]


@pytest.mark.parametrize("setting", ["homogeneous", "centralised"])
def test_later_stages_are_unseen(setting):
    made = orders(setting=setting, evaluation={"unseen": True})
    order = made.stream.evaluation(7)
    assert asked(made) == [order, *(order[stage:] for stage in range(1, 9))]


def test_in_heterogeneous_stages_what_no_participant_has_trained_is_unseen():
    before, *after = asked(orders(setting="heterogeneous", evaluation={"unseen": True}))
    assert len(before) == 8
    late = [[name for name, stage in LATE.items() if stage > number] for number in range(1, 9)]
    assert [sorted(names) for names in after] == [sorted(names) for names in late]


def test_stages_that_are_not_evaluated_ask_nothing_unseen():
    _, *after = asked(orders(evaluation={"unseen": True, "when": [3]}))
    assert [len(names) for names in after] == [0, 0, 5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("when", "stages"), [("stage", [1, 2, 3, 4, 5, 6, 7, 8]), ("final", [8]), ([2, 5], [2, 5, 8])])
def test_held_out_data_sets_have_stages_of_their_own(when, stages):
    made = orders(evaluation={"held_out": ["mini-general"], "held_out_when": when, "when": "final"})
    before, *after = asked(made)
    assert before == ["mini-general"]
    assert [number for number, names in enumerate(after, start=1) if names] == stages


def test_references_without_a_sequence_of_stages_have_a_beginning_and_an_end():
    made = orders(method="joint", evaluation={"held_out": ["mini-general"], "unseen": True})
    assert [bool(names) for names in asked(made)] == [True, *[False] * 7, True]
    assert made.untrained(-1) == ["mini-general"]


def test_nothing_is_asked_unless_it_is_wanted():
    assert asked(orders()) == [[]] * 9


def test_the_untouched_model_has_no_subspaces():
    made = orders(method="individual")
    made.stream = SimpleNamespace(test=lambda name: [None] * 3)
    [(node, order)] = made.untouched(["iconqa"], [7])
    assert (node, order.names, order.knowledge, order.tensors, order.task) == (7, [], {}, {}, "")


def test_what_was_answered_before_an_interruption_is_not_asked_again(tmp_path, monkeypatch):
    saved: list[list[str]] = []
    counted: list[int] = []
    scored = Scored(50.0, {}, Followed({}, 0, 50.0), None)
    monkeypatch.setattr(module, "score", lambda benchmark, answers, file: scored)
    monkeypatch.setattr(module.checkpoint, "save", lambda run, state, progress: saved.append(list(progress.evaluated)))
    made = Evaluation(
        RunConfig(),
        SimpleNamespace(),
        SimpleNamespace(predictions=tmp_path, path=tmp_path),
        SimpleNamespace(untrained=lambda stage: ["a", "b", "c"]),
        SimpleNamespace(),
        lambda kind, **values: None,
        lambda: counted.append(len(saved)),
    )
    progress, turns = Progress(), iter([["a"], ["b", "c"]])

    def answers(state, progress, due, untouched):
        assert untouched
        assert due == [name for name in ("a", "b", "c") if name not in progress.evaluated]
        for name in next(turns):
            yield Answers(dataset=name, first=0, texts=["x"], seconds=0.1)
        if len(progress.evaluated) < 3:
            raise Unanswered("nobody there")

    monkeypatch.setattr(made, "_answers", answers)
    assert made.begins(progress)
    with pytest.raises(Unanswered):
        made.before(None, progress)
    made.before(None, progress)
    progress.end_untrained(0)
    assert saved == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert counted == [0, 1, 2]  # real time is brought up to now before each checkpoint
    assert progress.untrained_rows == {"0": {"a": 50.0, "b": 50.0, "c": 50.0}}
    assert (progress.samples, progress.samples_untrained, progress.evaluated, progress.rows) == (3, 3, [], [])
    assert not made.begins(progress)
