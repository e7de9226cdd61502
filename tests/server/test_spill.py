import sys
from dataclasses import replace

import numpy as np
import pytest

from fcit.errors import RunError
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.federation.packing import TYPES
from fcit.io import threads
from fcit.io.files import map_tensors, write_tensors
from fcit.runs.folder import RunDir
from server.spill import Spill, digest


def order(client: int = 1, shard: str = "a", **changes) -> TrainOrder:
    tensors = {"a": np.zeros(1, np.float32), "extra/x": np.ones(2, np.float32)}
    return replace(
        TrainOrder(
            config="yaml",
            stage=0,
            round=0,
            client=client,
            shard=shard,
            tasks=[0],
            subspace=f"s{client}",
            tensors=tensors,
        ),
        **changes,
    )


def update(client: int = 1, shard: str = "a", value: float = 1.0) -> ClientUpdate:
    return ClientUpdate(
        stage=0,
        round=0,
        client=client,
        shard=shard,
        subspace=f"s{client}",
        examples=10 + client,
        steps=1,
        loss=0.1 + 0.2,
        seconds=0.1,
        tensors={"a": np.array([value], np.float32)},
    )


def put(spill: Spill, client: int, shard: str, value: float) -> None:
    spill.put(order(client, shard), update(client, shard, value))


@pytest.mark.parametrize("name", ["map_tensors", "read_tensors"])
def test_tensors_come_back_as_they_were(name, tmp_path, monkeypatch):
    """Through pages of the file, and without torch through a copy."""
    kept = {kind: np.arange(6).reshape(2, 3).astype(TYPES[kind]) for kind in TYPES}
    kept |= {"nothing": np.zeros((0, 2), np.float32), "scalar": np.float32(3).reshape(())}
    write_tensors(tmp_path / "x.safetensors", kept)
    if name == "read_tensors":
        monkeypatch.delitem(sys.modules, "torch")
        assert "torch" not in sys.modules
    found = map_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").unlink()
    assert found.keys() == kept.keys()
    for kind, tensor in kept.items():
        assert (found[kind].dtype, found[kind].shape) == (tensor.dtype, tensor.shape)
        assert (found[kind] == tensor).all()
        found[kind][...] = 0  # a private page


def test_a_damaged_file_of_tensors_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": np.zeros(9, np.float32)})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"x\.safetensors: not a readable safetensors file"):
        map_tensors(file)


def test_a_changed_number_in_any_stretch_is_another_hash(monkeypatch):
    monkeypatch.setattr(threads, "STRETCH", 2)
    seen = {digest({"a": np.eye(1, 5, number, np.float32)}) for number in range(5)}
    assert len(seen) == 5
    memo = {}
    tensors = {"a": np.ones((2, 3), np.float32).T, "b": np.zeros(0, np.float32)}
    assert digest(tensors, memo) == digest(tensors, memo) == digest(tensors)


def test_updates_come_in_client_order(tmp_path):
    spill = Spill(RunDir(tmp_path))
    for arrival in [(11, "a", 1.0), (2, "b", 2.0), (-1, "all", 3.0), (2, "a", 4.0)]:
        put(spill, *arrival)
    assert len(spill) == 4
    got = [(u.client, u.subspace, u.examples, u.tensors["a"].tolist()) for u in spill]
    assert got == [(-1, "s-1", 9, [3.0]), (2, "s2", 12, [4.0]), (2, "s2", 12, [2.0]), (11, "s11", 21, [1.0])]
    assert len(list(spill)) == 4  # can be read again, as rules that need all updates do


def test_clear(tmp_path):
    run = RunDir(tmp_path)
    spill = Spill(run)
    put(spill, 1, "a", 1.0)
    (run.spill / "robust").mkdir()
    spill.clear()
    assert len(spill) == 0
    assert list(spill) == []
    assert list(run.spill.iterdir()) == []


def test_a_repeated_update_replaces_the_first(tmp_path):
    spill = Spill(RunDir(tmp_path))
    put(spill, 1, "a", 1.0)
    put(spill, 1, "a", 2.0)
    assert [u.tensors["a"].tolist() for u in spill] == [[2.0]]


def test_a_new_process_finds_the_update_to_the_same_order(tmp_path):
    run = RunDir(tmp_path)
    put(Spill(run), 1, "a", 0.1)
    again = Spill(run)
    again.tidy(0, 0)
    found = again.find(order())
    kept = update(value=0.1)
    assert replace(found, tensors={}) == replace(kept, tensors={})  # the loss to the last digit
    assert found.tensors["a"].tobytes() == kept.tensors["a"].tobytes()
    assert len(again) == 0  # nothing counts before it was judged again
    again.take(found)
    assert [u.client for u in again] == [1]
    assert again.find(order(2)) is None


def test_constants_that_travel_again_make_no_other_order(tmp_path):
    run = RunDir(tmp_path)
    put(Spill(run), 1, "a", 0.1)
    sent = {**order().tensors, "constant/teacher/x": np.ones(3, np.float32)}
    assert Spill(run).find(order(tensors=sent)) is not None
    assert Spill(run).find(order(keep=["teacher-0"])) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": "0-1"},
        {"offset": 3},
        {"frozen": ["a"]},
        {"constants": ["teacher-1"]},
        {"config": "other"},
        {"subspace": "other"},
        {"tensors": {"a": np.ones(1, np.float32), "extra/x": np.ones(2, np.float32)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_update_to_another_order_is_not_reused(tmp_path, changes):
    run = RunDir(tmp_path)
    put(Spill(run), 1, "a", 0.1)
    assert Spill(run).find(order(**changes)) is None


def test_what_other_rounds_and_a_kill_left_is_removed(tmp_path):
    run = RunDir(tmp_path)
    put(Spill(run), 1, "a", 0.1)
    spill = Spill(run)
    spill.put(order(2, round=1), replace(update(2), round=1))
    (run.spill / "3-a.safetensors").write_bytes(b"its head was never written")
    (run.spill / ".4-a.json.tmp").write_text("{")
    (run.spill / "robust").mkdir()
    Spill(run).tidy(0, 1)
    assert sorted(p.name for p in run.spill.iterdir()) == ["2-a.json", "2-a.safetensors"]


def other_tensors(run: RunDir) -> None:
    put(Spill(RunDir(run.path / "x")), 1, "a", 7.0)
    (run.path / "x" / "spill" / "1-a.safetensors").replace(run.spill / "1-a.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run.spill / "1-a.json").write_text("{"),
        lambda run: (run.spill / "1-a.json").write_text("{}"),
        lambda run: (run.spill / "1-a.safetensors").write_bytes(b"\0" * 100),
        lambda run: (run.spill / "1-a.safetensors").unlink(),
        lambda run: (run.spill / "1-a.json").write_text(
            (run.spill / "1-a.json").read_text().replace('"examples": 11', '"examples": "11"')
        ),
        other_tensors,
    ],
    ids=["half a head", "no head", "zeros", "gone", "another type", "another file"],
)
def test_a_damaged_update_is_not_reused(tmp_path, damage):
    run = RunDir(tmp_path)
    put(Spill(run), 1, "a", 0.1)
    damage(run)
    with pytest.raises(RunError, match="1-a"):
        Spill(run).find(order())
