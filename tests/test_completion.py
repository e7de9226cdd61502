"""What the shell is told that a word could become, asked as argcomplete asks it."""

import os
import subprocess
import sys

import pytest

from fcit.cli import completion


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/small-1", "runs/small-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("name: small")
        (tmp_path / name / "environment.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("{}")
    (tmp_path / "notes.txt").write_text("")


def test_run_folders(folders):
    assert list(completion.run_folders("")) == ["runs/"]
    assert list(completion.run_folders("runs/s")) == ["runs/small-1", "runs/small-2"]


def test_yaml_files(folders):
    assert list(completion.yaml_files("")) == ["mine.yaml", "runs/"]
    assert list(completion.yaml_files("runs/small-1/c")) == ["runs/small-1/config.yaml"]
    assert list(completion.yaml_files("nowhere/")) == []


def test_settings_and_their_parts():
    assert "training.lr=" in list(completion.overrides("tra"))
    assert "method=disco" in list(completion.overrides("method=d"))
    assert "federation.engine=ray" in list(completion.overrides("federation.engine="))
    assert "benchmark=fcit-mini-task" in list(completion.overrides("benchmark="))
    assert list(completion.overrides("seed=")) == []
    assert {"disco", "scaffold"} <= set(completion.parts(""))


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("fcit rep", {"report "}),
        ("fcit resume runs/small-2", {"runs/small-2 "}),
        ("fcit run mine.yaml --dr", {"--dry-run "}),
        ("fcit run mine.yaml method=zero", {"method=zero_shot "}),
    ],
)
def test_the_shell_asks(line, becomes, folders, tmp_path):
    """As bash does: the line in variables, the answer on file descriptor 8."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\v"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    command = [sys.executable, "-m", "fcit.cli"]
    subprocess.run(command, env={**os.environ, **asked}, cwd=tmp_path, check=True)
    assert set(answer.read_text().split("\v")) == becomes
