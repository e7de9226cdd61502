"""The Ray engine: equal to inline bit for bit, through dead workers and stops; one cluster for all tests.

Every worker imports torch and transformers, which costs more than what it does here: there are as few as can be.
"""

import json
import os
import shutil
import signal
import tempfile
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray
import yaml

import fcit
from fcit import config as configuration
from fcit.cli import main
from fcit.errors import ConfigError, RunError
from fcit.federation.engines.ray import RayGrid
from fcit.runs.create import create
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server import checkpoint
from server.app import run as serve
from tests.helpers.commands import Command
from tests.helpers.runs import SMALL, bits, rounds
from tests.helpers.waiting import LONG, wait

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

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
    """Kills a busy worker once, when the first update of the run is in."""

    grid = None
    killed = 0

    def say(self, kind, **values):
        if kind == "client" and self.grid is not None and self.grid.busy:
            self.killed = next(pid for pid, seat in zip(self.grid.pids, self.grid._seats, strict=True) if seat.job)
            os.kill(self.killed, signal.SIGKILL)
            self.grid = None


def prepared(folder: Path, **changes) -> RunDir:
    raw = {**SMALL, "output": str(folder), **changes}
    raw["federation"] = {**raw["federation"], "engine": "ray"}
    return RunDir.create(folder, "small", configuration.dump(configuration.parse(raw)), describe())


def opened(run: RunDir) -> RayGrid:
    """The workers for a prepared folder."""
    config = configuration.load(run.config)
    return RayGrid(None, config.federation.clients, config, run.memory)


def test_ray_equals_inline_loads_once_and_replaces_a_worker_killed_in_a_round(cluster, tmp_path, monkeypatch):
    """EWC's anchor is kept by clients that any worker may serve; SCAFFOLD's variates too."""
    stored, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    before = signal.getsignal(signal.SIGTERM)
    remembering = {
        "data": {"max_records": 80},
        "method": "ewc",
        "fedopt": "scaffold",
        "evaluation": {"samples": 4},
        "federation": {**SMALL["federation"], "clients": 5, "rounds": 1, "beta": 100.0},  # few, so that some come back
    }
    inline = fcit.simulate({**SMALL, **remembering, "output": str(tmp_path)})
    run, killer = prepared(tmp_path, **remembering, ray={"address": cluster, "workers": 2}), Killer()
    with closing(opened(run)) as grid:
        killer.grid = grid
        serve(run.path, grid, killer)
        workers = grid.statistics()
    assert killer.killed, "nobody was killed"
    assert bits(run.path) == bits(inline.path)
    again = Run(run.path)
    assert set.intersection(*(set(event["clients"]) for event in again.of("round")))
    assert again.results["cost"]["client_memory_bytes"] == inline.results["cost"]["client_memory_bytes"] > 0
    # each of two rounds and two evaluations stored its tensors once, however many orders share them;
    # SCAFFOLD's variates are none yet in the first round, and both clients' zeros are their own
    assert len(stored) == 2 + 2 + 2
    # two stages of one round each, evaluation: every worker worked, none loaded the model twice
    assert [w["loads"] for w in workers] == [1, 1]
    assert min(w["orders"] for w in workers) >= 1  # how many depends on when one was killed
    assert len({w["pid"] for w in workers}) == 2
    assert not {w["pid"] for w in workers} & {os.getpid(), killer.killed}
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before


def test_parts_of_ones_own_equal_inline_and_one_without_memory_stops_the_run(cluster, own_config, tmp_path):
    own = configuration.load(own_config, ["federation.engine=ray"])
    run = create(
        own.model_copy(update={"ray": own.ray.model_copy(update={"address": cluster, "workers": 1, "attempts": 1})})
    )
    with closing(opened(run)) as grid:
        serve(run.path, grid)
        (tmp_path / "hungry.py").write_text(OUT_OF_MEMORY)
        federation = {**SMALL["federation"], "clients": own.federation.clients}
        hungry = prepared(tmp_path, method=f"{tmp_path / 'hungry.py'}:Hungry", federation=federation)
        with pytest.raises(RunError, match=r"lost its worker 1 times .*out of memory: .*no room"):
            serve(hungry.path, grid)
    assert Run(run.path).method == "anchored"
    assert bits(run.path) == bits(fcit.simulate(own_config).path)
    assert (hungry.path / "state" / "000002" / "state.json").is_file()  # the checkpoint of the round before
    assert not hungry.results.exists()


def test_too_few_cores_are_told_before_anything_starts(cluster, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"5 workers need 5 CPUs, the cluster has 2"):
        opened(prepared(tmp_path, ray={"address": cluster, "workers": 5}))
    with pytest.raises(ConfigError, match=r"2 workers need 1 GPUs, the cluster has 0"):
        opened(prepared(tmp_path, ray={"address": cluster, "workers": 2, "num_gpus": 0.5}))
    with pytest.raises(ConfigError, match=r"ray.address '127.0.0.1:1': cannot start"):
        opened(prepared(tmp_path, ray={"address": "127.0.0.1:1"}))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"ray.address '127.0.0.1:1': cannot start"):
        opened(prepared(tmp_path, ray={"address": "auto"}))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"ray.address: 'auto' takes host:port from the variable RAY_ADDRESS"):
        opened(prepared(tmp_path, ray={"address": "auto"}))


def stop(config: Path, run: Path, number: signal.Signals) -> tuple[Command, list[psutil.Process]]:
    """Start a run, stop it once its first round has its checkpoint; the command, and what it had started."""
    command = Command("run", config)
    wait(lambda: rounds(run) > 1 or command.returncode is not None)
    family = psutil.Process(command.pid).children(recursive=True)
    command.signal(number)
    command.wait()
    return command, family


def checked(command: Command, code: int, run: Path) -> None:
    """It ended with the code, says how to go on, and left a checkpoint."""
    assert command.returncode == code, command.stderr
    assert f"fcit resume {run}" in command.stderr
    assert "Traceback" not in command.stderr
    whole = checkpoint.complete(RunDir(run))[0]  # Ctrl-C may have come while the next one was written
    assert whole is not None
    progress = json.loads((whole / "state.json").read_text())["progress"]
    assert (progress["stage"], progress["round"]) >= (0, 1)


def test_sigterm_leaves_a_checkpoint_and_no_process(cluster):
    """On a Ray of its own; the other tests' cluster runs on beside."""
    folder = Path(tempfile.mkdtemp(prefix="fcit-"))  # paths of sockets are short, so not under pytest's deep folders
    config, run = folder / "small.yaml", folder / "small-1"
    own = {"workers": 1, "temp_dir": str(folder)}
    federation = {**SMALL["federation"], "engine": "ray"}
    config.write_text(yaml.safe_dump({**SMALL, "output": str(folder), "ray": own, "federation": federation}))
    command, family = stop(config, run, signal.SIGTERM)
    checked(command, 75, run)
    gone, alive = psutil.wait_procs(family, timeout=LONG)
    assert len(gone) >= 3
    assert not alive
    assert not list(folder.glob("fcit-*"))
    assert cores(cluster, "cluster") == 2  # the other Ray was not disturbed
    shutil.rmtree(folder)


def test_ctrl_c_leaves_a_checkpoint_and_no_worker_and_the_run_goes_on(cluster, reference, tmp_path):
    config, run = tmp_path / "small.yaml", tmp_path / "small-1"
    federation = {**SMALL["federation"], "engine": "ray"}
    raw = {**SMALL, "output": str(tmp_path), "federation": federation, "ray": {"address": cluster, "workers": 1}}
    config.write_text(yaml.safe_dump(raw))
    command, _ = stop(config, run, signal.SIGINT)
    checked(command, 130, run)
    wait(lambda: cores(cluster, "available") == 2, pause=1)  # its workers are gone
    assert main(["resume", str(run)]) == 0
    assert bits(run) == bits(reference)


def cores(address: str, kind: str) -> float:
    """Cores that a cluster has, or has free."""
    ray.init(address=address, log_to_driver=False)
    try:
        return getattr(ray, f"{kind}_resources")().get("CPU", 0)
    finally:
        ray.shutdown()
