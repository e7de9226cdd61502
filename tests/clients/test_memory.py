import numpy as np
import pytest

from clients.worker.memory import ClientMemory
from fcit.errors import ConfigError, RunError


def test_a_version_counts_once_the_server_names_it(tmp_path):
    memory = ClientMemory(tmp_path)
    assert memory.load(3, "") == {}
    memory.save(3, "0-0", {"seen": [1, 2], "mean": np.ones(2)})
    memory.save(3, "0-1", {"seen": [9]})  # its round was never committed
    assert memory.load(3, "0-0")["mean"].tolist() == [1, 1]
    # what the server does not know is gone, so that the repeated round starts from the same point
    with pytest.raises(RunError):
        memory.load(3, "0-1")


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
    first = memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32), "a/y/z": np.zeros(1, np.float32)}, tidy=False)
    assert {n: t.tolist() for n, t in first["a"].items()} == {"x": [1, 1], "y/z": [0]}
    again = memory.constants(3, ["a", "b"], {"b/x": np.full(1, 2, np.float32)}, tidy=True)
    assert again["a"]["x"].tolist() == [1, 1]
    assert again["b"]["x"].tolist() == [2]
    assert memory.size(3) == sum(f.stat().st_size for f in (tmp_path / "3" / "constants").iterdir()) > 0
    memory.constants(3, ["b"], {}, tidy=False)  # the server may still go back to the round before
    assert set(memory.constants(3, ["a", "b"], {}, tidy=False)) == {"a", "b"}
    memory.constants(3, ["b"], {}, tidy=True)
    with pytest.raises(RunError):
        memory.constants(3, ["a"], {}, tidy=True)


def test_versions_and_constants_live_side_by_side(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(3, "0-0", {"x": 1})
    memory.constants(3, ["a"], {"a/x": np.ones(2, np.float32)}, tidy=False)
    assert memory.load(3, "0-0") == {"x": 1}
    assert memory.constants(3, ["a"], {}, tidy=True)["a"]["x"].size == 2


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden"])
def test_a_server_cannot_name_files_elsewhere(tmp_path, name):
    memory = ClientMemory(tmp_path)
    with pytest.raises(RunError, match="not a name"):
        memory.constants(3, [name], {}, tidy=False)
    if name:
        with pytest.raises(RunError, match="not a name"):
            memory.load(3, name)
