import os

import numpy as np
import pytest

from clients.worker.memory import ClientMemory
from fcit.errors import ConfigError, MemoryLost, RunError


def test_a_version_counts_once_the_server_names_it(tmp_path):
    memory = ClientMemory(tmp_path)
    assert memory.load(3, "") == {}
    memory.save(3, "0-0", {"seen": [1, 2], "mean": np.ones(2)})
    memory.save(3, "0-1", {"seen": [9]})  # its round was never committed
    assert memory.load(3, "0-0")["mean"].tolist() == [1, 1]
    # what the server does not know is gone, so that the repeated round starts from the same point
    with pytest.raises(RunError):
        memory.load(3, "0-1")


def test_the_version_before_stays_for_a_server_that_goes_back(tmp_path):
    memory = ClientMemory(tmp_path)
    first, second, third = ({"x": np.full(n, n, np.float32)} for n in (1, 2, 3))
    memory.save(3, "0-9", first)
    assert memory.load(3, "0-9")["x"].size == 1
    memory.save(3, "0-10", second)
    memory.load(3, "0-10")
    memory.save(3, "1-0", third)  # the checkpoint that names it turns out damaged, and so does that of 0-10
    assert memory.load(3, "0-9")["x"].size == 1
    assert {file.stem for file in (tmp_path / "3").iterdir()} == {"0-9"}


def test_of_earlier_versions_the_newest_stays_and_what_it_takes_is_not_counted(tmp_path):
    memory = ClientMemory(tmp_path)
    for version in ("0-9", "0-10", "1-0"):
        memory.save(3, version, {"x": np.zeros(len(version), np.float32)})
    memory.load(3, "1-0")
    folder = tmp_path / "3"
    assert {file.stem for file in folder.iterdir()} == {"0-10", "1-0"}
    os.utime(folder / "0-10.json")  # as a copy of the folder may leave it
    assert memory.size(3) == sum(file.stat().st_size for file in folder.glob("1-0.*"))
    assert memory.load(3, "") == {}
    assert memory.size(3) == 0


def test_what_is_tried_leaves_no_trace(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(3, "0-0", {"x": 1})
    memory.read_only().save(3, "0-1", {"x": 2})
    assert memory.read_only().load(3, "0-0") == {"x": 1}
    assert sorted(file.name for file in (tmp_path / "3").iterdir()) == ["0-0.json", "0-0.safetensors"]


def test_clients_do_not_see_each_other(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(1, "0-0", {"x": 1})
    assert memory.load(2, "") == {}
    assert memory.load(1, "0-0") == {"x": 1}


def test_without_a_folder_it_says_so():
    with pytest.raises(ConfigError, match="client-memory"):
        ClientMemory(None).load(0, "")


def test_constants_are_sent_once_and_kept(tmp_path):
    memory = ClientMemory(tmp_path)
    first = memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32), "a/y/z": np.zeros(1, np.float32)})
    assert {n: t.tolist() for n, t in first["a"].items()} == {"x": [1, 1], "y/z": [0]}
    again = memory.constants(3, ["a", "b"], {"b/x": np.full(1, 2, np.float32)})
    assert again["a"]["x"].tolist() == [1, 1]
    assert again["b"]["x"].tolist() == [2]
    assert memory.size(3) == sum(f.stat().st_size for f in (tmp_path / "3" / "constants").iterdir()) > 0


def test_constants_stay_as_long_as_the_server_counts_on_them(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32)})
    memory.constants(3, ["b"], {"b/x": np.ones(2, np.float32)}, keep=["a"])  # an order that may never have counted
    assert set(memory.constants(3, ["a", "b"], {})) == {"a", "b"}
    memory.constants(3, ["b"], {})
    with pytest.raises(MemoryLost):
        memory.constants(3, ["a"], {})
    memory.constants(3, [], {})  # pieces of a stage that is over, with none of the new one
    assert memory.size(3) == 0


def test_what_is_tried_neither_keeps_nor_removes_constants(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32)})
    before = memory.size(3)
    trial = memory.read_only().constants(3, ["b"], {"b/x": np.full(1, 2, np.float32)})
    assert trial["b"]["x"].tolist() == [2]
    assert memory.size(3) == before
    assert list(memory.constants(3, ["a"], {})) == ["a"]


def test_without_a_folder_there_are_no_constants():
    assert ClientMemory(None).constants(3, [], {}) == {}
    assert ClientMemory(None).size(3) == 0
    with pytest.raises(ConfigError, match="client-memory"):
        ClientMemory(None).constants(3, ["a"], {})


def test_versions_and_constants_live_side_by_side(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(3, "0-0", {"x": 1})
    memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32)})
    assert memory.load(3, "0-0") == {"x": 1}
    assert memory.constants(3, ["a"], {})["a"]["x"].size == 2


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden"])
def test_a_server_cannot_name_files_elsewhere(tmp_path, name):
    memory = ClientMemory(tmp_path)
    with pytest.raises(RunError, match="not a name"):
        memory.constants(3, [name], {})
    if name:
        with pytest.raises(RunError, match="not a name"):
            memory.load(3, name)
