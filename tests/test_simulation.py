"""What a plain run hands on from its command to the server, without a server."""

from pathlib import Path

import pytest

import fcit
from fcit import config as configuration
from fcit.runs.folder import RunDir


@pytest.fixture
def served(monkeypatch) -> list:
    """What the server is called with; it does nothing."""
    from fcit.report import page
    from server import app

    calls: list = []
    monkeypatch.setattr(app, "run", lambda *values: calls.append(values))
    monkeypatch.setattr(page, "write_page", lambda runs, path: None)
    return calls


def test_a_plain_run_parses_its_configuration_once(served, monkeypatch, tmp_path):
    parsed = []
    real = configuration.parse
    monkeypatch.setattr(configuration, "parse", lambda raw, source="": parsed.append(source) or real(raw, source))
    raw = {"benchmark": "fcit-mini-short", "method": "finetune", "output": str(tmp_path), "name": "once"}
    run = fcit.simulate(raw, federation__engine="inline")
    assert run.config.name == "once" and parsed == ["config"]
    [(path, _, _, _, stream)] = served
    assert (path, stream.config) == (tmp_path / "once-1", run.config)


def test_a_run_folder_is_read_where_nothing_is_handed_on(served, tmp_path):
    from fcit.simulation import execute

    config = configuration.resolve({"output": str(tmp_path), "federation": {"engine": "inline"}}, Path.cwd(), "test")
    folder = RunDir.create(tmp_path, "read", configuration.dump(config), {})
    run = execute(folder.path)
    assert served[0][-1] is None
    assert run.config == config
