"""Some questions of each test set: which, for whom, and what the numbers are called."""

import json

import pytest
import yaml
from PIL import Image

from fcit.config import RunConfig, parse
from fcit.data.benchmark import open_benchmark
from fcit.data.subset import chosen, reduced

QUESTIONS = 300


def test_fewer_questions_are_among_more():
    few, more = chosen(QUESTIONS, "cups", 50, 0), chosen(QUESTIONS, "cups", 100, 0)
    assert len(set(few)) == 50
    assert len(set(more)) == 100
    assert set(few) < set(more)


def test_questions_come_in_the_order_of_the_records():
    picked = chosen(QUESTIONS, "cups", 50, 0)
    assert picked == sorted(picked)
    assert picked != list(range(50))


def test_the_choice_belongs_to_its_own_seed_and_the_data_set():
    picked = chosen(QUESTIONS, "cups", 50, 0)
    assert chosen(QUESTIONS, "cups", 50, 1) != picked != chosen(QUESTIONS, "hats", 50, 0)


@pytest.mark.parametrize("samples", [None, 300, 301])
def test_all_questions(samples):
    assert chosen(QUESTIONS, "cups", samples, 0) == list(range(QUESTIONS))


@pytest.fixture
def captions(tmp_path):
    """A data set of twelve captions with references numbered 1 to 12; returns a function that opens it."""
    (tmp_path / "datasets").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "datasets" / "0.png")
    folder = tmp_path / "instructions"
    folder.mkdir()
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A cup."}]
    (folder / "train.json").write_text(json.dumps([{"image": "0.png", "conversations": turns}] * 20))
    test = [{"question_id": f"q{n}", "image": "0.png", "text": "Describe."} for n in range(1, 13)]
    (folder / "test.json").write_text(json.dumps(test))
    notes = [{"image_id": n, "id": n, "caption": f"cup {n}"} for n in range(1, 13)]
    (folder / "refs.json").write_text(json.dumps({"annotations": notes, "images": [{"id": n} for n in range(1, 13)]}))
    dataset = {"train": "train.json", "test": "test.json", "references": "refs.json", "scorer": "caption"}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"name": "own", "datasets": {"cups": dataset}, "tasks": [["cups"]]}))

    def _open(**changes):
        raw = {"benchmark": str(file), "data_root": str(tmp_path), "federation": {"clients": 2, "clients_per_round": 2}}
        return open_benchmark(RunConfig.model_validate({**raw, **changes}))

    return _open


def test_references_stay_with_their_questions(captions):
    records = captions(evaluation={"samples": 5}).test("cups")
    assert len(records) == 5
    assert [r.question_id for r in records] != [f"q{n}" for n in range(1, 6)]
    assert [r.references for r in records] == [(f"cup {r.question_id[1:]}",) for r in records]


def test_runs_of_any_seed_are_asked_the_same(captions):
    asked = {"evaluation": {"samples": 5}}
    one, other = captions(**asked, seed=1), captions(**asked, seed=2)
    assert list(one.test("cups")) == list(other.test("cups"))
    again = captions(evaluation={"samples": 5, "seed": 7})
    assert list(again.test("cups")) != list(one.test("cups"))


def test_reduced_numbers_are_named_and_full_ones_are_not():
    assert reduced(parse({})) == reduced(parse({"evaluation": {"when": "final", "seed": 3, "split": "val"}})) == []
    assert reduced(parse({"evaluation": {"samples": 50, "split": "val"}, "data": {"max_records": 200}})) == [
        "50 questions a val set, choice 0",
        "200 training records a data set",
    ]
    assert reduced(parse({"data": {"turns": "first"}})) == ["the first turn of every conversation"]
    assert reduced(parse({"data": {"turns": "all"}})) == []
    assert reduced(parse({"evaluation": {"personal": 3}})) == ["20 % of every shard, at most 32 records, not learnt"]
    assert reduced(parse({"evaluation": {"personal": False}})) == []
