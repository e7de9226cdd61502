import json

import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods.replay import Replay
from tests.helpers.toy import TinyModel, session


def replay(**options) -> Replay:
    return Replay(RunConfig(method={"name": "replay", **options}))


def records(first: int, count: int) -> list[Encoded]:
    return [Encoded((i, 1), ((1, 2),), (f"{i}.png",)) for i in range(first, first + count)]


def visit(method, memory, shard, examples, seed=0):
    """An order without steps."""
    view = session(shard=shard, examples=examples, memory=memory, seed=seed)
    method.prepare(view)
    method.finish(view)
    return memory["kept"]


def test_every_record_met_has_the_same_chance():
    """5 places, 20 records in two shards: each is kept in a quarter of 2,000 draws (standard error 1 %)."""
    counts = np.zeros(20)
    for seed in range(2000):
        memory: dict = {}
        visit(replay(buffer=5), memory, "a", records(0, 12), seed)
        kept = visit(replay(buffer=5), memory, "b", records(12, 8), seed)
        assert len(kept) == 5
        assert memory["seen"] == 20
        counts[[entry[1][0] for entry in kept]] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 0.05


def test_a_shard_is_taken_in_once():
    memory: dict = {}
    visit(replay(), memory, "a", records(0, 3))
    visit(replay(), memory, "a", records(0, 3))
    assert memory["seen"] == 3
    assert len(memory["kept"]) == 3


def test_batches_are_joined_by_records_of_other_shards():
    method, memory = replay(ratio=0.5), {}
    visit(method, memory, "a", records(0, 3))
    model = TinyModel()
    view = session(model, shard="b", examples=records(10, 4), memory=memory)
    method.prepare(view)
    method.loss(view, records(10, 4), torch.zeros(4, 1, 1))
    shown, features = model.shown
    assert len(shown) == features == 6
    assert shown[:4] == records(10, 4)
    assert {e.tokens[0] for e in shown[4:]} <= {0, 1, 2}
    assert len({e.tokens for e in shown}) == 6


@pytest.mark.parametrize(("parts", "added"), [([4], [2]), ([1, 1, 1, 1], [0, 1, 0, 1]), ([3, 1], [1, 1])])
def test_parts_of_a_batch_are_joined_by_as_many_in_all(parts, added):
    """Half as many as the four of a step, however they pass through the model."""
    method, memory = replay(ratio=0.5), {}
    visit(method, memory, "a", records(0, 5))
    model = TinyModel()
    view = session(model, shard="b", examples=records(10, 4), memory=memory)
    method.prepare(view)
    for _ in range(2):
        seen, view.step = [], list(range(4))
        for size in parts:
            method.loss(view, records(10, size), torch.zeros(size, 1, 1))
            seen.append(len(model.shown[0]) - size)
        assert seen == added


def test_the_shard_at_hand_is_not_replayed():
    method, memory = replay(), {}
    visit(method, memory, "a", records(0, 3))
    model = TinyModel()
    view = session(model, shard="a", examples=records(0, 3), memory=memory)
    method.prepare(view)
    method.loss(view, records(0, 3), torch.zeros(3, 1, 1))
    assert model.shown == (records(0, 3), 3)


def test_a_memory_made_before_there_were_conversations_is_replayed():
    """It held prompt, answer and one image's name; new ones hold tokens, answer spans and all images."""
    memory = {"kept": [["old", [1, 5, 6], [7, 2], "a.png"]], "shards": ["old"], "seen": 1}
    method, model = replay(ratio=1), TinyModel()
    view = session(model, shard="b", examples=records(10, 2), memory=memory)
    method.prepare(view)
    assert view.notes["old"] == [Encoded((1, 5, 6, 7, 2), ((3, 5),), ("a.png",))]
    method.loss(view, records(10, 1), torch.zeros(1, 1, 1))
    assert model.shown == ([*records(10, 1), *view.notes["old"]], 2)
    method.finish(view)
    assert memory["kept"][0] == ["old", [1, 5, 6], [7, 2], "a.png"]
    assert memory["seen"] == 3


def test_conversations_are_remembered_with_all_answers_and_images():
    talk = Encoded((1, 9, 9, 3, 2, 4, 5, 2), ((3, 5), (6, 8)), ("a.png", "b.png"))
    text = Encoded((1, 4, 2), ((1, 3),), ())
    memory: dict = {}
    visit(replay(), memory, "a", [talk, text])
    model = TinyModel()
    view = session(model, shard="b", examples=records(10, 2), memory=json.loads(json.dumps(memory)))
    replay(ratio=2).prepare(view)
    assert view.notes["old"] == [talk, text]
    replay(ratio=2).loss(view, records(10, 1), torch.zeros(1, 1, 1))
    assert len(model.shown[0]) == 3
    assert model.shown[1] == 1 + 2  # no image, and two
