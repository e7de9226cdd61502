"""The Ray engine: equal to inline bit for bit, through dead workers and stops; one cluster for all tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray
import yaml

import fcit
from fcit.errors import ConfigError, RunError
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from tests.e2e.conftest import SMALL, bits

OUT_OF_MEMORY = """
from fcit.methods.finetune import Finetune


class Hungry(Finetune):
    summary = "one client never has enough memory"

    def loss(self, session, examples, features):
        if session.round == 1:
            raise MemoryError("no room")
        return super().loss(session, examples, features)
"""


class Killer:
    """Kills every busy worker once, when the first update of the run is in."""

    grid = None

    def say(self, kind, **values):
        if kind == "client" and self.grid is not None and self.grid.busy:
            for pid in self.grid.pids:
                os.kill(pid, signal.SIGKILL)
            self.grid = None


def prepared(folder: Path, **changes) -> RunDir:
    raw = {**SMALL, "output": str(folder), **changes}
    raw["federation"] = {**SMALL["federation"], "engine": "ray"}
    from fcit.config import dump, parse

    return RunDir.create(folder, "small", dump(parse(raw)), describe())


def on_ray(run: RunDir, watcher=None) -> list[dict]:
    """Run a prepared folder; returns what each worker did."""
    from clients.app import app
    from fcit import config as configuration
    from fcit.federation.engines.ray import RayGrid
    from server.app import run as serve

    config = configuration.load(run.config)
    with closing(RayGrid(app, config.federation.clients, config, run.memory)) as grid:
        if watcher is not None:
            watcher.grid = grid
        serve(run.path, grid, watcher)
        return grid.statistics()


def test_ray_equals_inline_and_loads_once(cluster, reference, tmp_path, monkeypatch):
    stored, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    before = signal.getsignal(signal.SIGTERM)
    run = prepared(tmp_path, ray={"address": cluster, "workers": 2})
    workers = on_ray(run)
    assert bits(run.path) == bits(reference)
    # each of eight rounds and four evaluations stored its tensors once, however many orders share them
    assert len(stored) == 8 + 4
    # four stages, two rounds each, evaluation: every worker worked, none loaded the model twice
    assert [w["loads"] for w in workers] == [1, 1]
    assert min(w["orders"] for w in workers) > 8
    assert len({w["pid"] for w in workers}) == 2 and os.getpid() not in {w["pid"] for w in workers}
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) == before


def test_parts_of_ones_own_equal_inline(cluster, own_config):
    run = fcit.simulate(own_config, federation__engine="ray", ray={"address": cluster, "workers": 2})
    assert run.method == "anchored"
    assert bits(run.path) == bits(fcit.simulate(own_config).path)


def test_memories_and_constants_equal_inline(cluster, tmp_path):
    """EWC's anchor is kept by clients that any worker may serve; SCAFFOLD's variates too."""
    federation = {**SMALL["federation"], "clients": 60, "rounds": 1, "beta": 100.0}
    raw = {**SMALL, "method": "ewc", "fedopt": "scaffold", "evaluation": {"samples": 4}, "output": str(tmp_path)}
    inline = fcit.simulate({**raw, "federation": federation})
    again = fcit.simulate(
        {**raw, "federation": {**federation, "engine": "ray"}}, ray={"address": cluster, "workers": 2}
    )
    assert bits(again.path) == bits(inline.path)
    assert again.results["cost"]["client_memory_bytes"] == inline.results["cost"]["client_memory_bytes"] > 0


def test_workers_killed_in_a_round_are_replaced(cluster, reference, tmp_path):
    run, killer = prepared(tmp_path, ray={"address": cluster, "workers": 2}), Killer()
    workers = on_ray(run, killer)
    assert killer.grid is None, "nobody was killed"
    assert bits(run.path) == bits(reference)
    assert [w["loads"] for w in workers] == [1, 1]


def test_an_order_that_always_runs_out_of_memory_stops_the_run(cluster, tmp_path):
    own = tmp_path / "hungry.py"
    own.write_text(OUT_OF_MEMORY)
    run = prepared(tmp_path, ray={"address": cluster, "workers": 2, "attempts": 2}, method=f"{own}:Hungry")
    with pytest.raises(RunError, match=r"lost its worker 2 times .*out of memory: .*no room"):
        on_ray(run)
    assert (run.path / "state" / "000002" / "state.json").is_file()  # the checkpoint of the round before
    assert not run.results.exists()


def test_too_few_cores_are_told_before_anything_starts(cluster, tmp_path):
    run = prepared(tmp_path, ray={"address": cluster, "workers": 5})
    with pytest.raises(ConfigError, match=r"5 workers need 5 CPUs, the cluster has 2"):
        on_ray(run)
    with pytest.raises(ConfigError, match=r"2 workers need 1 GPUs, the cluster has 0"):
        on_ray(prepared(tmp_path, ray={"address": cluster, "workers": 2, "num_gpus": 0.5}))
    with pytest.raises(ConfigError, match=r"ray.address '127.0.0.1:1': cannot start"):
        on_ray(prepared(tmp_path, ray={"address": "127.0.0.1:1"}))


def stopped(folder: Path, number: signal.Signals) -> tuple[Path, int, list[psutil.Process], str]:
    """Start `fcit run` on a private Ray, stop it after its first round; returns what it left."""
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "output": str(folder), "ray": {"workers": 2, "temp_dir": str(folder)}}))
    command = [sys.executable, "-m", "fcit.cli", "run", str(config), "federation.engine=ray"]
    # A job in the background inherits an ignored SIGINT; a terminal's does not.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **heard) as process:
        events = folder / "small-1" / "events.jsonl"
        deadline = time.monotonic() + 180
        while '"round"' not in (events.read_text() if events.is_file() else ""):
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    return folder / "small-1", process.returncode, family, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_a_checkpoint_and_no_process(cluster, reference, number, code):
    # Paths of sockets are short, so not under pytest's deep folders. The other tests' cluster runs on beside.
    folder = Path(tempfile.mkdtemp(prefix="fcit-"))
    run, returned, family, said = stopped(folder, number)
    assert returned == code
    assert f"fcit resume {run}" in said and "Traceback" not in said
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert len(gone) >= 4 and not alive
    assert not list(folder.glob("fcit-*"))
    # Work goes on between the look at the events and the signal: the round may be the stage's last.
    progress = json.loads((max((run / "state").iterdir()) / "state.json").read_text())["progress"]
    assert (progress["stage"], progress["round"]) >= (0, 1)
    if number == signal.SIGTERM:
        from fcit.cli import main

        assert main(["resume", str(run)]) == 0
        assert bits(run) == bits(reference)
    ray.init(address=cluster, log_to_driver=False)  # the other Ray was not disturbed
    try:
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
    shutil.rmtree(folder)
