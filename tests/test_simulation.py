"""What a plain run hands on from its command to the server, without a server."""

from pathlib import Path

import pytest

import fcit
from fcit import config as configuration
from fcit.data.stream import open_stream
from fcit.runs.create import create
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
    assert run.config.name == "once"
    assert parsed == ["config"]
    [(path, _, _, _, (config, stream))] = served
    assert (path, config, stream.config) == (tmp_path / "once-1", run.config, run.config)


def test_a_run_folder_is_read_where_nothing_is_handed_on(served, tmp_path):
    from fcit.simulation import execute

    config = configuration.resolve({"output": str(tmp_path), "federation": {"engine": "inline"}}, Path.cwd(), "test")
    folder = RunDir.create(tmp_path, "read", configuration.dump(config), {})
    run = execute(folder.path)
    assert served[0][-1] is None
    assert run.config == config


def test_a_benchmark_bound_to_another_configuration_does_not_change_the_runs_own(monkeypatch, tmp_path):
    from server import app

    looped: list = []

    class Loop:
        def __init__(self, config, stream, *_):
            looped.append((config, stream))

        def start(self) -> None:
            """Nothing is run."""

    monkeypatch.setattr(app, "Loop", Loop)
    (tmp_path / "mine.py").write_text(
        "from fcit.data.benchmark import open_benchmark\n\n\n"
        "def make(config):\n"
        "    return open_benchmark(config.model_copy(update={'benchmark': 'fcit-mini-short'}))\n"
    )
    own = f"{tmp_path / 'mine.py'}:make"
    config = configuration.resolve({"benchmark": own, "method": "finetune", "output": str(tmp_path)}, tmp_path, "test")
    stream = open_stream(config)
    folder = create(config, stream)
    app.run(folder.path, None, prepared=(config, stream))
    app.run(folder.path, None)
    assert [(config.benchmark, stream.config.benchmark) for config, stream in looped] == [(own, "fcit-mini-short")] * 2
