"""What a deployment's commands refuse, get over and show, with a SuperLink that only pretends."""

import shutil
from pathlib import Path

import yaml

from fcit import config as configuration
from fcit.cli import main
from fcit.data.stream import open_stream
from fcit.deploy import submit as module
from fcit.deploy.control import SuperLinkAway
from fcit.deploy.steps import DeployError
from fcit.io.files import read_json, write_text
from fcit.runs.folder import BELONGS, RunDir
from fcit.runs.recorded import hold_data
from tests.deploy.pretended import CONFIG, config, pretend


def test_one_run_at_a_time(deployment, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "failed").going.append("5")
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 1
    assert "run 5 is going on" in capsys.readouterr().err
    assert not list((deployment.path / "runs").iterdir())


def test_an_app_that_is_not_the_installed_one_is_not_submitted(deployment, tmp_path, monkeypatch, capsys):
    pretended = pretend(monkeypatch, "failed")
    monkeypatch.setattr("fcit.deploy.submit.app.differs", lambda deployment: ["server/loop.py"])
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 2
    assert "fcit deploy update" in capsys.readouterr().err
    assert pretended.asked == []


def test_dry_run_shows_the_command(deployment, tmp_path, monkeypatch, capsys):
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path), "--dry-run"]) == 0
    assert f"flwr run {deployment.app} operator -c 'run-dir=" in capsys.readouterr().out
    assert not list((deployment.path / "runs").iterdir())
    assert deployment.remembered("runs") == {}


def test_a_superlink_that_stays_away_is_given_up(deployment, tmp_path, monkeypatch, capsys):
    pretended = pretend(monkeypatch, "failed")

    def away(deployment, *words, settings=(), steps=None):
        if settings[:1] == ("--run-id",):
            raise SuperLinkAway("the SuperLink does not answer")
        return pretended(deployment, *words, settings=settings, steps=steps)

    monkeypatch.setattr("fcit.deploy.submit.flwr", away)
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_superlink_that_cannot_write_does_not_end_the_display(deployment, tmp_path, monkeypatch, capsys):
    """Its disk is full: it refuses to say how the run is, whose events are there to be read."""
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    folder.event("start", stages=1, rounds=1, done=[0, 0])
    deployment.remember("runs", {"7": str(folder.path)})
    asked = []

    def refuses(deployment, *words, settings=(), steps=None):
        asked.append(words)
        if len(asked) == 3:
            folder.event("stage", stage=0, row={"last": 50.0})
            folder.results.write_text("{}")
        raise DeployError("flwr ls: 500 Internal Server Error")

    monkeypatch.setattr("fcit.deploy.submit.flwr", refuses)
    monkeypatch.setattr(module, "write_page", lambda *arguments: None)
    monkeypatch.setattr(module.terminal, "ending", lambda *arguments: None)
    assert main(["deploy", "follow", str(deployment.path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("followed by its events only: flwr ls: 500 Internal Server Error") == 1
    assert "stage 1 scores: last 50.0" in shown


def test_what_to_stop_must_be_clear(deployment, monkeypatch, capsys):
    pretended = pretend(monkeypatch, "stopped")
    assert main(["deploy", "stop", str(deployment.path)]) == 2
    assert "nothing to stop" in capsys.readouterr().err
    pretended.going.append("5")
    assert main(["deploy", "stop", str(deployment.path)]) == 0
    assert pretended.asked[-1] == ("stop", "5")


def test_follow_wants_a_run_that_is_known(deployment, capsys):
    assert main(["deploy", "follow", str(deployment.path), "99"]) == 2
    assert "99 was not submitted here" in capsys.readouterr().err


def test_changed_code_is_refused_before_anything_is_sent(deployment, tmp_path, monkeypatch, capsys):
    """The way out goes through the same command, as the server of a deployment works elsewhere."""
    pretended = pretend(monkeypatch, "completed", "")
    examples = Path(__file__).parents[2] / "examples" / "own"
    shutil.copy(examples / "momentum.py", tmp_path / "momentum.py")
    raw = {**CONFIG, "fedopt": f"{tmp_path}/momentum.py:Momentum"}
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(raw), {})
    write_text(folder.path / BELONGS, f"{deployment.path}\n")
    benchmark = open_stream(configuration.load(folder.config))
    hold_data(folder, benchmark)
    write_text(folder.state / "000001" / "state.json", "{}")
    (tmp_path / "momentum.py").write_text((tmp_path / "momentum.py").read_text() + "\n# other\n")
    command = ["deploy", "submit", str(deployment.path), "--resume", str(folder.path)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"fedopt Momentum ({tmp_path}/momentum.py): " in said
    assert not any(a[0] == "run" for a in pretended.asked)
    assert f"`fcit {' '.join(command)} --accept-changed-data` goes on" in said
    monkeypatch.setattr(module, "_follow", lambda *arguments: 0)
    assert main([*command, "--accept-changed-data"]) == 0
    assert len(read_json(folder.environment)["data_changes"]) == 1
    assert any(a[0] == "run" for a in pretended.asked)


def test_register_goes_on_past_a_key_that_is_refused(deployment, monkeypatch, capsys):
    deployment.remember("nodes", {})

    def flwr(deployment, *words, settings=(), steps=None):
        if words[-1] == "0":
            raise DeployError("flwr supernode register: the public key is already in use")
        return {"node-id": "12"}

    monkeypatch.setattr("fcit.deploy.control.flwr", flwr)
    assert main(["deploy", "register", str(deployment.path)]) == 1
    assert deployment.remembered("nodes") == {"1": "12"}
    said = capsys.readouterr().err
    assert "not registered: site 0: flwr supernode register: the public key is already in use" in said
    assert f"`fcit deploy add {deployment.path} 0`" in said


def test_status_cuts_no_folder(deployment, monkeypatch, capsys):
    long = str(deployment.path / "runs" / ("a-long-name" * 12))
    deployment.remember("runs", {"5": long})
    pretend(monkeypatch, "failed").going.append("5")
    assert main(["deploy", "status", str(deployment.path)]) == 0
    assert f"run 5  running  {long}" in capsys.readouterr().out
