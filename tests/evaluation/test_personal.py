"""Clients on their own records: what is kept out, what is summed up, what a client may claim."""

import dataclasses
from types import SimpleNamespace

import pytest

from fcit.bench.leaderboard import _spread
from fcit.config import parse
from fcit.config.personal import Personal
from fcit.data.benchmark import open_benchmark
from fcit.data.own_questions import as_questions, kept_out
from fcit.data.records import Record, Turn
from fcit.errors import ConfigError
from fcit.evaluation import personal
from fcit.federation.messages import PersonalScores
from fcit.methods.base import ServerState
from server.checkpoint import Progress
from server.participants import slot_of
from server.personal import PersonalEvaluation, reject_reason

ROWS = {
    "0": {"3": {"global": 60.0, "tuned": 80.0, "alone": 50.0}, "7": {"global": 40.0, "tuned": 30.0, "alone": 40.0}},
    "1": {"3": {"global": 20.0, "tuned": 40.0}},
}


def test_figures_by_hand():
    assert personal.summary(ROWS, ["0", "1"]) == {
        "clients": 3,
        "global": {"mean": 40.0, "worst": 20.0},
        "tuned": {"mean": 50.0, "worst": 30.0},
        "alone": {"mean": 45.0, "worst": 40.0},
        "helped": 50.0,  # of two with both; equal scores help no one
        "tuning_helps": pytest.approx(200 / 3),
    }
    assert personal.summary(ROWS, ["1"])["helped"] is None
    assert personal.summary({"0": {"3": {"private": 60.0, "alone": 50.0}}}, ["0"])["helped"] == 100.0
    twenty = {"0": {str(n): {"global": float(n)} for n in range(20)}}
    assert personal.summary(twenty, ["0"])["global"]["worst"] == 0.5  # of 0 and 1


def test_results_count_stages_from_one_and_a_run_without_has_no_columns():
    made = personal.results(ROWS)
    assert list(made["stages"]) == ["1", "2"]
    assert made["scores"]["2"] == ROWS["1"]
    assert personal.columns({"personal": made})["own worst"] == 20.0
    assert set(personal.columns({}).values()) == {None}
    assert _spread(list(personal.columns({}).values())) is None


def test_tasks_of_several_rules_are_refused_before_a_run_begins():
    asked = {"benchmark": "fcit-mini-cap", "evaluation": {"personal": 2}}
    said = r"task 0 of benchmark 'fcit-mini-cap' has data sets of different rules \(box-iou, exact\)"
    with pytest.raises(ConfigError, match=said):
        open_benchmark(parse(asked))
    open_benchmark(parse({**asked, "benchmark": "fcit-mini-task"}))
    open_benchmark(parse({**asked, "evaluation": {}}))


def test_what_is_kept_out_is_the_same_each_time_and_bounded():
    settings = Personal(share=0.2, most=3)
    first = kept_out(12, settings, 0, 4, 1)
    assert len(first) == 2
    assert first == sorted(set(first)) == kept_out(12, settings, 0, 4, 1)
    assert len(kept_out(1000, settings, 0, 4, 1)) == 3
    assert kept_out(4, settings, 0, 4, 1) == []  # a fifth of four is none
    assert kept_out(12, None, 0, 4, 1) == []


def test_a_question_is_the_first_one_of_its_record():
    (asked,) = as_questions([Record(("a.png",), (Turn("Why?", "So.", 1), Turn("And?", "No.")))])
    assert (asked.instruction, asked.answer, asked.images) == ("Why?", "So.", ("a.png",))


@pytest.mark.parametrize(("given", "clients"), [(True, 5), (3, 3), ({"clients": 2, "share": 0.5}, 2)])
def test_ways_to_ask_for_it(given, clients):
    asked = parse({"evaluation": {"personal": given}}).evaluation.personal
    assert asked is not None
    assert asked.clients == clients


def test_only_clients_whose_update_took_part_are_asked():
    config = parse({"evaluation": {"personal": 3}})
    slots = [slot_of(config.seed, 0, client, (0,)) for client in (3, 4, 5)]
    state = ServerState(assigned={slot.pair: "0" for slot in slots})
    progress = Progress(declared={f"{slot.client}/{slot.shard}": 10 for slot in slots})  # each has been described
    courier = SimpleNamespace(node=lambda client: client + 1)
    asking = PersonalEvaluation(config, SimpleNamespace(slots=lambda stage: [(0,)]), None, courier, None)
    assert asking._sampled(state, progress) == []
    progress.contributed = [f"4/{slots[1].shard}"]
    assert asking._sampled(state, progress) == [slots[1]]


def test_off():
    assert parse({"evaluation": {"personal": False}}).evaluation.personal is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"secure_aggregation": "on"}}, "which privacy.secure_aggregation does not cover"),
        ({"privacy": {"token_epsilon": 4}}, "which privacy.token_"),
        ({"stream": "site"}, "scored on its own test files already"),
        ({"setting": "centralised", "method": "finetune"}, "there is one participant"),
        ({"adapter": {"ranks": {4: 0.5, 8: 0.5}}, "method": "finetune"}, "smaller adapter.ranks cannot afford"),
    ],
)
def test_what_it_does_not_go_with(changes, words):
    with pytest.raises(ConfigError, match=words):
        parse({"evaluation": {"personal": True}, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scores": {}, "count": 0}, None),
        ({}, None),
        ({"count": 0}, "claims 0 questions"),
        ({"scores": {}}, "0 scores"),
        ({"scores": {"global": 1.0, "mine": 2.0}}, "scores must be of"),
        ({"scores": {"global": 1e9}}, "not between 0 and"),
        ({"scores": {"global": float("nan")}}, "not between 0 and"),
        ({"seconds": -1.0}, "claims -1.0 seconds"),
    ],
)
def test_what_a_client_may_say(changes, reason):
    sound = PersonalScores(client=1, shard="s", scores={"global": 50.0, "alone": 20.0}, count=4, seconds=1.0)
    problem = reject_reason(dataclasses.replace(sound, **changes))
    assert (problem is None) if reason is None else (reason in problem)
