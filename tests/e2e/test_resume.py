"""Nothing accepted is lost: kill -9 at any moment, a full disk, too few updates, sites that come and go."""

import copy
import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
import yaml
from flwr.serverapp import Grid

from clients.app import app
from fcit import config as configuration
from fcit.errors import RunError, StopRequested
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.engines.private import NodeInfo
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server import checkpoint
from server.app import run as serve
from tests.helpers.commands import fcit as fcit_process
from tests.helpers.runs import SMALL, Copies, Dies, bits

pytestmark = pytest.mark.slow

#: One run dies four times; the last process ends it.
MOMENTS = {
    "in a round": "server.spill,Spill.put,after,2",
    "in aggregation": "fcit.fedopt.aggregator,Group.add,after,2",
    "while a checkpoint is written": "server.checkpoint,write_json,before,2",
    "in evaluation": "server.evaluation,score,after,2",
}


def told(run: Path) -> list[tuple]:
    """What the rounds came to, as far as it does not depend on clocks."""
    keys = ("stage", "round", "clients", "subspaces", "tasks", "examples", "loss", "exactness")
    return [tuple(str(event[key]) for key in keys) for event in Run(run).of("round")]


def new_run(folder: Path, **changes) -> RunDir:
    federation = {**SMALL["federation"], "clients_per_round": 3, **changes["federation"]}
    raw = {**SMALL, "output": str(folder), **changes, "federation": federation}
    return RunDir.create(folder, "run", configuration.dump(configuration.parse(raw)), describe())


def tiny(folder: Path, **federation) -> RunDir:
    """A run whose evaluation takes several orders and hardly any time."""
    evaluation = {"samples": 4, "batch_size": 2, "batches_per_order": 1}
    return new_run(folder, evaluation=evaluation, federation=federation)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The tiny run as it is without any trouble."""
    run = tiny(tmp_path_factory.mktemp("plain"))
    serve(run.path, InlineGrid(app, 50))
    return run.path


@pytest.mark.thorough
def test_kill_9_again_and_again_and_resume(plain, tmp_path):
    run = tmp_path / "killed-1"
    command = ["run", plain / "config.yaml", f"output={tmp_path}", "name=killed"]
    for moment, point in MOMENTS.items():
        done = fcit_process(*command, point=point)
        assert done.returncode == -signal.SIGKILL, done.stderr
        command = ["resume", run]
        if moment == "in a round":
            assert len(list((run / "spill").glob("*.json"))) == 2
    assert not (run / "results.json").exists()
    done = fcit_process(*command)
    assert done.returncode == 0, done.stderr
    assert bits(run) == bits(plain)
    assert told(run) == told(plain)
    reused = [(e["stage"], e["round"], len(e["clients"])) for e in Run(run).of("reused")]
    assert reused == [(0, 0, 3), (0, 1, 3)]  # nobody trained the rounds of the first stage twice
    before, after = (json.loads((r / "results.json").read_text())["traffic"] for r in (plain, run))
    assert before["orders"] == after["orders"]
    assert after["rejected"] == 0
    assert not (run / "spill").exists()


def test_sigterm_is_heard_within_a_round(plain, tmp_path):
    class Stops:
        def say(self, kind, **values):
            self.clients = getattr(self, "clients", 0) + (kind == "client")
            if kind == "client" and self.clients == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    run = tiny(tmp_path)
    with pytest.raises(StopRequested, match="SIGTERM"):
        serve(run.path, InlineGrid(app, 50), Stops())
    assert not Run(run.path).of("round")
    assert len(list(run.spill.glob("*.json"))) == 2
    serve(run.path, InlineGrid(app, 50))
    assert bits(run.path) == bits(plain)


# ---------------------------------------------------------------------- a disk that is full


def test_a_full_disk_stops_the_run_and_resume_goes_on(reference, tmp_path, fcit):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    try:
        config = tmp_path / "small.yaml"
        config.write_text(yaml.safe_dump({**SMALL, "output": str(disk)}))
        code, _, err = fcit("run", config)
        run = disk / "small-1"
        assert code == 1
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert "MB free" in err
        assert f"`fcit resume {run}`" in err
        assert not list(run.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert fcit("resume", run)[0] == 0
        assert bits(run) == bits(reference)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------- too few updates


class Moody:
    """The ClientApp; one client fails so many times. ``asked`` counts training orders by (stage, round, client)."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: Counter = Counter()

    def __call__(self, message, context):
        if message.metadata.message_type == "train":
            who = context.node_config["partition-id"]
            group = message.metadata.group_id.rsplit(".", 1)[0]
            self.asked[group, who] += 1
            if self.failures and group == "0.1" and who == next(c for g, c in self.asked if g == "0.1"):
                self.failures -= 1
                raise ValueError("not now")
        return app(message, context)


def test_waiting_for_updates_asks_only_those_that_lack(plain, tmp_path):
    run = tiny(tmp_path, on_too_few="wait", pause=0.01, min_updates=3, retries=0)
    moody = Moody(failures=3)
    serve(run.path, InlineGrid(moody, 50))
    assert bits(run.path) == bits(plain)
    counts = sorted(n for (group, _), n in moody.asked.items() if group == "0.1")
    assert counts == [1, 1, 4]
    assert len(Run(run.path).of("retry")) == 3


def test_stopping_at_too_few_updates_and_resume_asks_only_those_that_lack(plain, tmp_path):
    run = tiny(tmp_path, on_too_few="stop", min_updates=3)
    with pytest.raises(RunError, match=r"2 usable updates, 3 needed .*on_too_few: stop.*fcit resume"):
        serve(run.path, InlineGrid(Moody(failures=9), 50))
    healthy = Moody(failures=0)
    serve(run.path, InlineGrid(healthy, 50))
    assert bits(run.path) == bits(plain)
    assert sum(n for (group, _), n in healthy.asked.items() if group == "0.1") == 1


def test_a_wish_to_stop_is_heard_in_the_pause(tmp_path):
    run = tiny(tmp_path, on_too_few="wait", pause=3600.0, min_updates=3)

    class Stops:
        def say(self, kind, **values):
            if kind == "retry":
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested):  # else this takes an hour
        serve(run.path, InlineGrid(Moody(failures=9), 50), Stops())


# ---------------------------------------------------------------------- clients that remember


def scaffold(folder: Path, clients: int = 60, **evaluation) -> RunDir:
    """Clients keep their variates and what their updates lack."""
    federation = {"clients": clients, "min_updates": 3, "beta": 100.0, "wire": "int8", "top_k": 0.2}
    return new_run(
        folder,
        method="finetune",
        fedopt="scaffold",
        data={"max_records": 600},
        evaluation={"samples": 2, **evaluation},
        federation=federation,
    )


def grid_of(run: RunDir) -> InlineGrid:
    return InlineGrid(app, Run(run.path).config.federation.clients, memory=run.memory)


def test_reused_updates_of_clients_that_remember(tmp_path):
    whole, run = scaffold(tmp_path), RunDir(tmp_path / "cut")
    serve(whole.path, grid_of(whole), Copies(whole.path, run.path, 5, "client"))
    with pytest.raises(KeyboardInterrupt):  # and again; what it takes over counts, too
        serve(run.path, grid_of(run), Dies(3, "client"))
    serve(run.path, grid_of(run))
    assert bits(run.path) == bits(whole.path)
    assert told(run.path) == told(whole.path)
    assert [(e["round"], len(e["clients"])) for e in Run(run.path).of("reused")] == [(1, 3)]
    assert (
        Run(run.path).results["cost"]["client_memory_bytes"] == Run(whole.path).results["cost"]["client_memory_bytes"]
    )
    sent = [[event["up"] for event in Run(folder.path).of("round")] for folder in (whole, run)]
    assert max(abs(one - other) for one, other in zip(*sent, strict=True)) < 30  # seconds of other lengths as text
    assert max(sent[0]) < 3 * 150_000


def test_a_client_that_lost_its_memory_starts_afresh(tmp_path):
    run = scaffold(tmp_path, 24)  # few, so that they come back
    with pytest.raises(KeyboardInterrupt):
        serve(run.path, grid_of(run), Dies(8, "client"))
    shutil.rmtree(run.memory)
    serve(run.path, grid_of(run))
    lost = Run(run.path).of("memory-lost")
    assert lost
    assert len({e["client"] for e in lost}) == len(lost)
    assert all(e["version"] for e in lost)
    assert Run(run.path).finished


def test_a_client_without_its_memory_is_not_asked_for_its_own_models(tmp_path):
    run = scaffold(tmp_path, 24, personal={"clients": 24, "share": 0.5, "alone": 1})
    with pytest.raises(KeyboardInterrupt):  # after the rounds of the first stage
        serve(run.path, grid_of(run), Dies(1, "scored"))
    trained = len(checkpoint.load(run)[1].memories)
    shutil.rmtree(run.memory)
    serve(run.path, grid_of(run))
    first = [event for event in Run(run.path).of("memory-lost") if "round" not in event]
    assert {event["client"] for event in first} == {
        event["client"] for event in Run(run.path).of("personal-failed") if event["stage"] == 0
    }
    assert len(first) == trained
    assert Run(run.path).finished
    assert Run(run.path).results["personal"]["stages"]["1"]["clients"] == 0
    assert Run(run.path).results["personal"]["stages"]["2"]["clients"] > 0


# ---------------------------------------------------------------------- sites that come and go


class Deployment(Grid):
    """Virtual clients as registered nodes that come and go; answers are pulled, as from a SuperLink."""

    def __init__(self, inner: InlineGrid, there) -> None:
        self.inner, self.there = inner, there
        self.working = threading.Lock()
        self.sent: list[tuple[str, int]] = []

    def set_run(self, run): ...

    @property
    def run(self):
        return self.inner.run

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self):
        return [
            NodeInfo(node_id=n.node_id, name=n.name, last_activated_at="then")
            for n in self.inner.get_nodes()
            if self.there(self, int(n.name))
        ]

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += [(m.metadata.message_type, m.metadata.dst_node_id - 1000) for m in messages]
        return self.inner.push_messages(map(copy.copy, messages))  # as bytes: what the server lets go of is on its way

    def pull_messages(self, message_ids):
        with self.working:  # the clients compute where they are pulled, and share one model
            return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("Flower's own waiting cannot be stopped")


def sampled(run: Path) -> list[list[int]]:
    """Who was asked in each round."""
    return [event["clients"] for event in Run(run).of("round")]


def test_a_deployment_equals_the_simulation_and_outlives_a_node_in_evaluation(plain, tmp_path):
    def gone(message, context):  # client 1 never answers a question
        if message.metadata.message_type == "evaluate" and context.node_config["partition-id"] == 1:
            raise ValueError("gone")
        return app(message, context)

    run = tiny(tmp_path)
    grid = Deployment(InlineGrid(gone, 50), lambda grid, client: True)
    serve(run.path, grid)
    assert bits(run.path) == bits(plain)
    assert told(run.path) == told(plain)
    failed = Run(run.path).of("evaluate-failed")
    assert failed
    assert {e["client"] for e in failed} == {1}
    assert [c for kind, c in grid.sent if kind == "query.probe"] == list(range(50))


def test_absent_sites_are_not_asked_and_late_ones_take_part(plain, tmp_path):
    first, second, *_ = sampled(plain)
    late, leaves = first[0], second[0]
    assert late not in second
    assert leaves not in first

    def there(grid, client):  # one is not there in the first round, the other in the second
        begun = any(kind == "train" for kind, _ in grid.sent)
        return client != (leaves if begun else late)

    run = tiny(tmp_path)
    grid = Deployment(InlineGrid(app, 50), there)
    serve(run.path, grid)
    found = Run(run.path)
    absent = [(e["stage"], e["round"], e["client"]) for e in found.of("absent")]
    assert absent[:2] == [(0, 0, late), (0, 1, leaves)]
    assert {c for *_, c in absent[1:]} == {leaves}
    assert [e["client"] for e in found.of("joined")] == [late]
    assert not found.of("missing")
    assert not found.of("retry")
    assert found.finished
    trained = [c for kind, c in grid.sent if kind == "train"]
    assert sorted(trained[:2]) == sorted(first[1:])
    assert sorted(trained[2:4]) == sorted(second[1:])
    assert leaves not in {c for kind, c in grid.sent if kind == "evaluate"}
