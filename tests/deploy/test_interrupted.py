"""Which runs `fcit deploy up` goes on with, with a SuperLink that only pretends."""

from pathlib import Path

import pytest
import yaml

from fcit.deploy import control, interrupted
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import DeployError, Steps
from fcit.runs.folder import RunDir
from tests.deploy.conftest import plan


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    """One run was submitted, as number 5; the app is the installed one."""
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump({}), {})
    deployment = plan(tmp_path / "dir")
    deployment.home.mkdir(parents=True)
    deployment.remember("runs", {"5": str(folder.path)})
    monkeypatch.setattr("fcit.deploy.interrupted.app.differs", lambda deployment: [])
    return deployment


class Pretended:
    """Answers `flwr` commands; the run that it knows is in this state."""

    def __init__(self, monkeypatch, status: str, details: str = "") -> None:
        self.run = {"run-id": "5", "status": status, "status-details": details}
        self.commands: list[str] = []
        for module in (control, interrupted):
            monkeypatch.setattr(module, "flwr", self)

    def __call__(self, deployment, *words, settings=(), steps=None):
        self.commands.append(words[0])
        return {"ls": {"runs": [self.run]}, "run": {"run-id": "6"}}.get(words[0], {})


@pytest.mark.parametrize(
    ("status", "details", "commands"),
    [
        ("running", "", ["ls", "run", "stop"]),
        ("finished:failed", "No heartbeat received from the task", ["ls", "run"]),
        ("finished:failed", "ServerApp failed with exception: stopped by SIGTERM; `fcit resume x`", ["ls", "run"]),
        ("finished:failed", "ServerApp failed with exception: 1 usable updates, 2 needed", ["ls"]),
        ("finished:stopped", "", ["ls"]),
        ("finished:completed", "", ["ls"]),
        ("pending", "", ["ls"]),  # the SuperExec will take it
    ],
)
def test_only_a_run_that_was_cut_off_goes_on(deployment, monkeypatch, capsys, status, details, commands):
    pretended = Pretended(monkeypatch, status, details)
    interrupted.go_on(deployment, Steps())
    assert pretended.commands == commands
    assert ("6" in deployment.remembered("runs")) == ("run" in commands)
    assert ("it goes on from its last checkpoint as run 6" in capsys.readouterr().out) == ("run" in commands)


@pytest.mark.parametrize(
    ("status", "details", "resumed"),
    [
        ("running", "", False),  # it has its process: another one has ended
        ("starting", "", False),
        ("finished:failed", "No heartbeat received from the task", True),
        ("finished:failed", "ServerApp failed with exception: 1 usable updates, 2 needed", False),
        ("finished:stopped", "", False),
    ],
)
def test_where_its_own_process_alone_has_ended_a_run_goes_on_once_flower_has_ended_it(
    deployment, monkeypatch, status, details, resumed
):
    pretended = Pretended(monkeypatch, status, details)
    assert interrupted.go_on(deployment, Steps(), {})
    assert pretended.commands == ["ls", *(["run"] if resumed else [])]


def test_a_run_that_loses_its_process_again_and_again_is_left_alone_unless_it_gets_on(deployment, monkeypatch, capsys):
    folder = RunDir.open(Path(deployment.remembered("runs")["5"]))
    tried: dict[str, str] = {}
    for checkpoint, again in (("000001", True), ("000001", False), ("000002", True)):
        (folder.state / checkpoint).mkdir(parents=True, exist_ok=True)
        (folder.state / checkpoint / "state.json").write_text("{}")
        deployment.remember("runs", {"5": str(folder.path)})
        pretended = Pretended(monkeypatch, "finished:failed", "No heartbeat received from the task")
        assert interrupted.go_on(deployment, Steps(), tried)
        assert ("run" in pretended.commands) == again
        assert ("without a checkpoint since it was resumed" in capsys.readouterr().out) != again


def test_a_run_is_not_resumed_beside_another_one(deployment, monkeypatch):
    pretended = Pretended(monkeypatch, "finished:failed", "No heartbeat received from the task")
    others = [pretended.run, {"run-id": "6", "status": "running", "status-details": ""}]
    monkeypatch.setattr("fcit.deploy.control.flwr", lambda *words, **options: {"runs": others})
    assert interrupted.go_on(deployment, Steps(), {})
    assert pretended.commands == []


def test_a_superlink_that_is_away_is_said_to_be_unless_it_is_asked_again(deployment, monkeypatch, capsys):
    def away(*arguments, **options):
        raise control.SuperLinkAway("the SuperLink does not answer")

    monkeypatch.setattr("fcit.deploy.control.flwr", away)
    assert not interrupted.go_on(deployment, Steps(), {})
    assert capsys.readouterr().out == ""
    assert not interrupted.go_on(deployment, Steps())
    assert "is not resumed" in capsys.readouterr().out


def test_nothing_is_asked_without_a_run_or_after_its_end(deployment, monkeypatch):
    pretended = Pretended(monkeypatch, "running")
    folder = RunDir.open(Path(deployment.remembered("runs")["5"]))
    folder.results.write_text("{}")
    interrupted.go_on(deployment, Steps())
    deployment.remember("runs", {})
    interrupted.go_on(deployment, Steps())
    assert pretended.commands == []


def test_with_another_app_it_says_what_to_do(deployment, monkeypatch, capsys):
    Pretended(monkeypatch, "running")
    monkeypatch.setattr("fcit.deploy.interrupted.app.differs", lambda deployment: ["server/loop.py"])
    interrupted.go_on(deployment, Steps())
    assert f"`fcit deploy update {deployment.path}`, then `fcit deploy submit" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(deployment, monkeypatch, capsys):
    def away(*arguments, **options):
        raise DeployError("the SuperLink does not answer")

    monkeypatch.setattr("fcit.deploy.control.flwr", away)
    interrupted.go_on(deployment, Steps())
    assert "is not resumed: the SuperLink does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("over", [True, False])
def test_a_run_that_flower_ends_meanwhile_need_not_be_stopped(deployment, monkeypatch, capsys, over):
    """Between being listed and being stopped it may miss its last heartbeat."""
    pretended = Pretended(monkeypatch, "running")

    def flwr(deployment, *words, settings=(), steps=None):
        if words[0] == "stop":
            pretended.run["status"] = "finished:failed" if over else "running"
            raise DeployError("flwr stop 5: [code: 18] Run is already finished.")
        return pretended(deployment, *words, settings=settings, steps=steps)

    for module in (control, interrupted):
        monkeypatch.setattr(module, "flwr", flwr)
    interrupted.go_on(deployment, Steps())
    shown = capsys.readouterr().out
    assert "it goes on from its last checkpoint as run 6" in shown
    assert ("run 5 has no process and is not ended: flwr stop 5" in shown) != over
    assert "is not resumed" not in shown
