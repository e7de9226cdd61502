import errno
import json
from pathlib import Path

import numpy as np
import pytest

from fcit.config import RunConfig
from fcit.data import partition
from fcit.data.partition import ClientFiles
from fcit.data.spec import BenchmarkSpec
from fcit.errors import ConfigError, DataError


class Fixed:
    """A generator whose Dirichlet draws are given."""

    def __init__(self, *shares):
        self.shares, self.draws = list(shares), 0

    def dirichlet(self, _):
        self.draws += 1
        return np.array(self.shares[min(self.draws, len(self.shares)) - 1])


def test_sizes_are_floored_and_leftovers_dropped():
    assert partition.dirichlet_sizes(11, 3, 1.0, Fixed([0.5, 0.3, 0.2])) == [5, 3, 2]


def test_one_client_gets_all():
    """The draw of a single share is below 1 for some seeds."""
    assert [len(partition.partition(400, 1, 1.0, seed, 0)[0]) for seed in range(50)] == [400] * 50


def test_reserve_comes_first():
    # 5 of 11 records are left to draw: 2.5, 1.5 and 1 of them
    assert partition.dirichlet_sizes(11, 3, 1.0, Fixed([0.5, 0.3, 0.2]), reserve=2) == [4, 3, 3]


def test_reserve_larger_than_the_data():
    with pytest.raises(ConfigError, match=r"partition\.reserve"):
        partition.dirichlet_sizes(5, 3, 1.0, Fixed([1, 0, 0]), reserve=2)


def test_draws_again_until_everyone_has_enough():
    rng = Fixed([0.95, 0.05], [0.7, 0.3])
    assert partition.dirichlet_sizes(10, 2, 1.0, rng, min_size=2) == [7, 3]
    assert rng.draws == 2


def test_min_size_out_of_reach():
    rng = Fixed([1.0, 0.0])
    with pytest.raises(ConfigError, match=r"partition\.min_size: no draw in 1000 .* beta 0\.5"):
        partition.dirichlet_sizes(10, 2, 0.5, rng)
    assert rng.draws == 1000


def test_seed_and_task_decide():
    first = partition.partition(100, 5, 0.5, 0, 1)
    assert first == partition.partition(100, 5, 0.5, 0, 1)
    assert first != partition.partition(100, 5, 0.5, 1, 1)
    assert first != partition.partition(100, 5, 0.5, 0, 2)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_shares_are_disjoint_and_shuffled(beta):
    shares = partition.partition(400, 10, beta, 3, 0, reserve=8)
    used = [i for share in shares for i in share]
    assert len(used) == len(set(used))
    assert set(used) <= set(range(400))
    assert 400 - 10 < len(used) <= 400  # less than one record a client is dropped
    assert min(map(len, shares)) >= 8
    assert used != sorted(used)


ROWS = [{"n": 0}, {"n": 1}, {"n": 2}]


def test_write_clients(tmp_path):
    folder = tmp_path / "a" / "Task1"
    partition.write_clients(folder, ROWS, [[2, 0], []])
    assert json.loads((folder / "client_0.json").read_text()) == [{"n": 2}, {"n": 0}]
    assert json.loads((folder / "client_1.json").read_text()) == []
    assert [p.name for p in folder.parent.iterdir()] == ["Task1"]


def test_interrupted_writing_leaves_no_folder(tmp_path):
    with pytest.raises(IndexError):
        partition.write_clients(tmp_path / "Task1", ROWS, [[0], [9]])
    assert not (tmp_path / "Task1").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "a.json").write_text("[]", encoding="utf-8")
    spec = BenchmarkSpec(name="own", datasets={"a": {"train": "a.json", "test": "a.json"}}, tasks=[["a"]])
    files = ClientFiles(spec, tmp_path, RunConfig(federation={"clients": 2}), lambda task: [{} for _ in range(8)])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"client files cannot be written.*No space left.*FCIT_CACHE"):
        files.folder(0)
    assert not [p for p in (tmp_path / "cache").rglob("*") if "Task1" in p.name]


def test_the_quicker_of_two_writers_wins(tmp_path):
    partition.write_clients(tmp_path / "Task1", ROWS, [[0]])
    partition.write_clients(tmp_path / "Task1", ROWS, [[1]])
    assert json.loads((tmp_path / "Task1" / "client_0.json").read_text()) == [{"n": 0}]
    assert [p.name for p in tmp_path.iterdir()] == ["Task1"]


def test_fingerprint():
    assert partition.fingerprint(("a", 1)) == partition.fingerprint(("a", 1)) != partition.fingerprint(("a", 2))
