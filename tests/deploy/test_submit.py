"""`fcit deploy submit` as its user sees it, with a SuperLink that only pretends."""

import json
import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import yaml

from fcit.cli import main
from fcit.deploy import submit as module
from fcit.deploy.deployment import Deployment
from fcit.errors import DiskFull
from fcit.runs.folder import RunDir
from tests.deploy.pretended import CONFIG, config, ended, pretend


@pytest.mark.parametrize("end,code,word", [("failed", 1, "failed: no disk"), ("stopped", 75, "stopped: no disk")])
def test_a_run_that_did_not_complete_says_so(deployment, tmp_path, monkeypatch, capsys, end, code, word):
    pretended = pretend(monkeypatch, end, "no disk")
    pretended.over.set()
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == code
    shown = " ".join(capsys.readouterr().out.split())
    run = deployment.path / "runs" / "tiny-1"
    assert word in shown
    assert f"--resume {run}" in shown
    assert ("run", str(deployment.app), "-c", f'run-dir="{run}"') in pretended.asked
    assert deployment.remembered("runs") == {"7": str(run)}

    assert main(["resume", str(run)]) == 2  # would simulate the sites on the operator's machine
    assert f"fcit deploy submit {deployment.path} --resume {run}" in capsys.readouterr().err


def test_a_run_that_simulates_its_clients_is_refused(deployment, tmp_path, capsys):
    changes = {"devices": {"profile": "phone"}, "stream": "benchmark"}
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path, **changes)]) == 2
    assert "sites of a deployment are as fast as they are" in " ".join(capsys.readouterr().err.split())


def test_events_are_shown_and_only_those_of_this_run(deployment, tmp_path, monkeypatch, capsys):
    """A run that is resumed has events of its first life; the server cuts some of them off while we look."""
    pretended = pretend(monkeypatch, "failed", "x")
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    old = {"time": time.time() - 100, "event": "stage", "stage": 0, "row": {"past": 1.0}}
    folder.events.write_text((json.dumps(old) + "\n") * 50)

    def server() -> None:
        while ("run", str(deployment.app), "-c", f'run-dir="{folder.path}"') not in pretended.asked:
            time.sleep(0.01)
        folder.truncate_events(0)
        folder.event("start", stages=2, rounds=1, done=[0, 0])
        folder.event("stage", stage=0, row={"new": 50.0})
        time.sleep(0.2)
        folder.event("stage", stage=1, row={"newer": 60.0})
        time.sleep(0.1)
        pretended.over.set()

    thread = threading.Thread(target=server)
    thread.start()
    assert main(["deploy", "submit", str(deployment.path), "--resume", str(folder.path)]) == 1
    thread.join()
    shown = capsys.readouterr().out
    assert shown.count("stage 1 scores: new 50.0") == 1
    assert shown.count("stage 2 scores: newer 60.0") == 1
    assert "past" not in shown


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_end_it(deployment, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "failed")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_watch", interrupted)
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 130
    shown = " ".join(capsys.readouterr().out.split())
    assert f"fcit deploy follow {deployment.path} 7" in shown
    assert f"fcit deploy stop {deployment.path} 7" in shown


def test_a_wrong_configuration_starts_nothing(deployment, tmp_path, monkeypatch, capsys):
    pretended = pretend(monkeypatch, "failed")
    assert (
        main(
            [
                "deploy",
                "submit",
                str(deployment.path),
                config(tmp_path, federation={"clients": 3, "clients_per_round": 3, "min_updates": 3}),
            ]
        )
        == 2
    )
    assert "2 is not registered" in capsys.readouterr().err
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path), "training.lr=fast"]) == 2
    assert "training.lr" in capsys.readouterr().err
    assert main(["deploy", "submit", str(deployment.path)]) == 2
    assert pretended.asked == []
    assert not list((deployment.path / "runs").iterdir())


def test_a_site_may_be_registered_later(deployment, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "failed").over.set()
    three = config(tmp_path, federation={"clients": 3, "clients_per_round": 3, "min_updates": 2})
    assert main(["deploy", "submit", str(deployment.path), three]) == 1
    assert "2 is not registered yet and missed in the rounds until then" in capsys.readouterr().out


def test_a_run_that_is_resumed_meanwhile_is_followed_on(deployment, tmp_path, monkeypatch, capsys):
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    deployment.remember("runs", {"7": str(folder.path), "8": str(folder.path)})
    states = {"7": ("stopped", "N/A"), "8": ("failed", "no disk")}

    monkeypatch.setattr("fcit.deploy.submit.flwr", ended(states))
    assert main(["deploy", "follow", str(deployment.path), "7"]) == 1
    shown = capsys.readouterr().out
    assert "the run was interrupted and goes on as run 8 of the SuperLink" in shown
    assert "the run failed: no disk" in shown
    assert "stopped" not in shown


@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_that_lost_its_process_is_given_a_minute_to_be_resumed(
    deployment, tmp_path, monkeypatch, capsys, resumed
):
    """Flower may say that a run has failed before `fcit deploy up` has submitted it anew."""
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    folder.event("start", stages=1, rounds=1, done=[0, 0])
    deployment.remember("runs", {"7": str(folder.path)})
    states = {"7": ("failed", "No heartbeat received from the task"), "8": ("failed", "no disk")}

    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if resumed and now[0] >= 1030:
            deployment.remember("runs", {"7": str(folder.path), "8": str(folder.path)})

    monkeypatch.setattr("fcit.deploy.submit.flwr", ended(states))
    clock = SimpleNamespace(time=time.time, monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(module, "time", clock)
    assert main(["deploy", "follow", str(deployment.path), "7"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the run has lost its process; `fcit deploy up {deployment.path}` goes on with it" in shown
    assert ("goes on as run 8 of the SuperLink" in shown) == resumed
    assert ("the run failed: no disk" in shown) == resumed
    assert ("the run failed: No heartbeat received from the task" in shown) != resumed
    assert now[0] < 1062


def test_a_long_round_before_its_end_does_not_make_a_run_an_old_one(deployment, tmp_path, monkeypatch, capsys):
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    folder.event("start", stages=1, rounds=1, done=[0, 0])
    os.utime(folder.events, (1.0, 1.0))
    deployment.remember("runs", {"7": str(folder.path)})
    states = {"7": ("failed", "No heartbeat received from the task"), "8": ("failed", "no disk")}
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= 1030:  # Flower has said at 1010 that the run has failed
            deployment.remember("runs", {"7": str(folder.path), "8": str(folder.path)})

    monkeypatch.setattr("fcit.deploy.submit.flwr", ended(states))
    monkeypatch.setattr(module, "time", SimpleNamespace(time=time.time, monotonic=lambda: now[0], sleep=sleep))
    module._follow(deployment, "7", folder.path, 1.0)
    assert "goes on as run 8 of the SuperLink" in capsys.readouterr().out


@pytest.fixture
def watched(deployment, tmp_path, monkeypatch):
    """Watch a run of whose seconds each does something; returns at which seconds the SuperLink was asked for it."""
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    watcher = SimpleNamespace(say=lambda kind, **values: None)

    def watch(each_second: Callable[[int, RunDir], None]) -> list[int]:
        now, asked = [0], []

        def sleep(_: float) -> None:
            now[0] += 1
            each_second(now[0], folder)

        def flwr(deployment, *words, settings=(), steps=None):
            asked.append(now[0])
            return {"runs": [{"run-id": "7", "status": "finished:stopped", "status-details": ""}]}

        monkeypatch.setattr(module, "_ASK", 10.0)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time=time.time))
        monkeypatch.setattr(module, "flwr", flwr)
        module._watch(deployment, "7", folder, 1.0, watcher, module._Shown())
        return asked

    return watch


def test_the_superlink_is_asked_for_a_run_that_has_been_quiet(watched):
    def each_second(now: int, folder: RunDir) -> None:
        if now <= 20:
            folder.event("evaluated")

    assert watched(each_second) == [30]


def test_a_run_that_goes_on_under_another_number_is_asked_for_at_once(watched, deployment):
    def each_second(now: int, folder: RunDir) -> None:
        folder.event("evaluated")
        if now == 5:
            deployment.remember("runs", {"7": str(folder.path), "8": str(folder.path)})

    assert watched(each_second) == [5]


def test_an_error_names_the_command_of_a_deployment(deployment, tmp_path, monkeypatch, capsys):
    run = deployment.path / "runs" / "tiny-1"
    pretend(monkeypatch, "failed", f"too few updates; `fcit resume {run}` tries again").over.set()
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"`fcit deploy submit {deployment.path} --resume {run}` tries again" in shown
    assert "fcit resume" not in shown


def test_a_full_disk_does_not_keep_a_run_from_being_followed(deployment, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "failed", "no disk").over.set()
    full = DiskFull("runs.json: cannot be written: No space left on device")

    def remember(self, kind, values):
        raise full

    monkeypatch.setattr(Deployment, "remember", remember)
    assert main(["deploy", "submit", str(deployment.path), config(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "run 7 was started, but cannot be remembered" in shown
    assert "the run failed: no disk" in shown


def test_the_time_left_is_estimated_by_the_events_not_by_when_they_are_shown(deployment, tmp_path, monkeypatch, capsys):
    """Ten rounds of a minute each have passed when the run is looked at: ten more take ten minutes."""
    pretend(monkeypatch, "failed").over.set()
    folder = RunDir.create(tmp_path, "tiny", yaml.safe_dump(CONFIG), {})
    began = time.time() - 600
    rounds = {"stage": 0, "clients": [0, 1], "loss": {"0/0": 1.0}, "up": 0, "down": 0}
    events = [{"time": began, "event": "start", "stages": 1, "rounds": 19, "done": [0, 0]}]
    events += [{"time": began + 60 * (n + 1), "event": "round", "round": n, **rounds} for n in range(10)]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    deployment.remember("runs", {"7": str(folder.path)})
    main(["deploy", "follow", str(deployment.path)])
    last = [line for line in capsys.readouterr().out.splitlines() if "round 10/19" in line]
    assert last[0].endswith("10.0 min left")
    assert "clients 0 loss" in last[0]  # client 1 was sampled and sent nothing
