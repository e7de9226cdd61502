import numpy as np

from fcit.federation.records import ClientUpdate
from fcit.run_dir import RunDir
from server.aggregation import Spill


def update(client: int, shard: str, value: float) -> ClientUpdate:
    return ClientUpdate(
        0, 0, client, shard, f"s{client}", 10 + client, 1, 0.5, 0.1, {"a": np.array([value], np.float32)}
    )


def test_updates_come_in_client_order(tmp_path):
    spill = Spill(RunDir(tmp_path))
    for arrival in [(11, "a", 1.0), (2, "b", 2.0), (-1, "all", 3.0), (2, "a", 4.0)]:
        spill.put(update(*arrival))
    assert len(spill) == 4
    got = [(u.client, u.subspace, u.examples, u.tensors["a"].tolist()) for u in spill]
    assert got == [(-1, "s-1", 9, [3.0]), (2, "s2", 12, [4.0]), (2, "s2", 12, [2.0]), (11, "s11", 21, [1.0])]
    assert len(list(spill)) == 4  # can be read again, as rules that need all updates do


def test_clear(tmp_path):
    run = RunDir(tmp_path)
    spill = Spill(run)
    spill.put(update(1, "a", 1.0))
    spill.clear()
    assert len(spill) == 0 and list(spill) == [] and list(run.spill.iterdir()) == []


def test_a_repeated_update_replaces_the_first(tmp_path):
    spill = Spill(RunDir(tmp_path))
    spill.put(update(1, "a", 1.0))
    spill.put(update(1, "a", 2.0))
    assert [u.tensors["a"].tolist() for u in spill] == [[2.0]]
