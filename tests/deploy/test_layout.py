import stat
from pathlib import Path

import pytest

from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import Steps
from fcit.errors import ConfigError, DiskFull


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "a: [",
        "x: 1",
        "host: a\nport: '9092'\nbind: 127.0.0.1\nsuperlink_port: 9091",
        "host: a\nport: 99999\nbind: 127.0.0.1\nsuperlink_port: 9091",
    ],
)
def test_damaged_facts_are_one_sentence(tmp_path, text):
    (tmp_path / "deployment.yaml").write_text(text)
    with pytest.raises(ConfigError):
        Deployment.open(tmp_path)


def test_facts_are_read_back(tmp_path):
    made = Deployment.plan(tmp_path, "fcit.example.org", 9092, None, 9091)
    made.file.write_text(made.facts())
    assert Deployment.open(tmp_path) == made


def test_a_full_disk_leaves_a_file_as_it_was(tmp_path, monkeypatch):
    """The list of sites, say, without which the door would let in nobody."""

    def full(path, content):
        raise OSError(28, "No space left on device")

    file = tmp_path / "sites.map"
    Steps().write(file, "first")
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **kind: path.open("w").close() or full(path, text))
    with pytest.raises(DiskFull, match="map: cannot be written"):
        Steps().write(file, "second")
    monkeypatch.undo()
    assert file.read_text() == "first"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
