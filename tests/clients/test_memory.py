import numpy as np
import pytest

from clients.memory import ClientMemory
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


def test_clients_do_not_see_each_other(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(1, "0-0", {"x": 1})
    assert memory.load(2, "") == {} and memory.load(1, "0-0") == {"x": 1}


def test_without_a_folder_it_says_so():
    with pytest.raises(ConfigError, match="client-memory"):
        ClientMemory(None).load(0, "")
