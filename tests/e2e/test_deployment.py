"""A federation of separate processes with TLS, keys and a door; SuperLink and SuperExec are killed on the way.

What comes out equals the simulation with the same seed, bit for bit. The same sites then run a federation that does not
wait for them, and its process is killed, too.
"""

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from fcit.cli import main
from fcit.config import site as sites
from fcit.data.mini.render import VERSION, ensure
from fcit.deploy import control
from fcit.deploy.init import init
from fcit.deploy.steps import Steps
from fcit.deploy.up import database_file
from fcit.deploy.watched import read_state
from fcit.io.cache import cache_folder
from fcit.runs.reader import Run
from tests.deploy.conftest import Up, free_port, nginx, plan  # noqa: F401  (nginx is a fixture)
from tests.helpers.commands import Command
from tests.helpers.lighter import PAGES
from tests.helpers.runs import BACKBONE, bits, rounds
from tests.helpers.waiting import wait

SITES = 2
RESUMED = "goes on from its last checkpoint"  #: what `up` says of a run whose process ended
FOLDERS = {"super-clevr": "super-CLEVR", "figureqa": "FigureQA"}
BENCHMARK = {
    "name": "two-tasks",
    "datasets": {
        name: {"train": f"{folder}/train.json", "test": f"{folder}/test.json", "scorer": "exact"}
        for name, folder in FOLDERS.items()
    },
    "tasks": [["super-clevr"], ["figureqa"]],
    "heterogeneous": [[0, 0], [1, 0]],  # two sites of one task, then of two
    "partition": {"reserve": 8},
}
CONFIG = {
    "name": "deployed",
    "benchmark": "two-tasks.yaml",
    "setting": "heterogeneous",
    "method": "disco",
    "seed": 3,
    "federation": {
        "rounds": 1,
        "clients": SITES,
        "clients_per_round": SITES,
        "min_updates": SITES,
        "on_too_few": "wait",  # for sites that are on their way back
        "pause": 1.0,
        "timeout": 300,
        "wire": "int8",
        "top_k": 0.5,
    },
    "evaluation": {"samples": 4},
    "backbone": BACKBONE,
    "data_root": "data",
}


def data(root: Path) -> None:
    """40 training and 6 test records of two mini datasets, as files of the user's own."""
    mini = cache_folder() / VERSION
    for name, folder in FOLDERS.items():
        ensure(name, mini)
        for split, count in (("train", 40), ("test", 6)):
            rows = json.loads((mini / "instructions" / folder / f"{split}.json").read_text())[:count]
            target = root / "instructions" / folder / f"{split}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(rows))
            for row in rows:
                image = root / "datasets" / row["image"]
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes((mini / "datasets" / row["image"]).read_bytes())


def configuration(folder: Path) -> Path:
    """The folder with data, benchmark and configuration that server and sites have alike."""
    folder.mkdir()
    data(folder / "data")
    (folder / "two-tasks.yaml").write_text(yaml.safe_dump(BENCHMARK))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def start_site(deployment, name: str, config: Path) -> Command:
    """Complete a site's SITE.yaml as its engineer would and start it."""
    file = deployment.site(name) / "SITE.yaml"
    text = file.read_text().replace("data_root: data ", f"data_root: {config.parent / 'data'} ")
    address = f"127.0.0.{int(name) + 2}"  # .2, .3
    inner = f"address: {address}\nport: {free_port(address)}\n"
    own = {key: BACKBONE[key] for key in ("model", "identity", "threads")}
    file.write_text(f"{text}\n{inner}benchmark: {config.parent / 'two-tasks.yaml'}\n{yaml.safe_dump(own)}")
    sites.load(file)
    environment = {key: value for key, value in os.environ.items() if key != "FCIT_CACHE"}
    return Command("client", "start", file, log=file.parent / "out.txt", environment=environment)


def told(deployment) -> str:
    """Everything that anybody said, for a failure."""
    logs = [deployment.path.with_name("up.log"), *deployment.path.glob("sites/*/home/logs/*.log")]
    return "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in logs if log.is_file())


def connected(deployment) -> bool:
    logs = [deployment.site(str(n)) / "home" / "logs" / "supernode.log" for n in range(SITES)]
    return all(log.is_file() and "SuperNode ID" in log.read_text() for log in logs)


def stored(deployment) -> int:
    """Messages and objects of all runs in the SuperLink's database."""
    with closing(sqlite3.connect(f"file:{database_file(deployment)}?mode=ro", uri=True)) as opened:
        tables = ("objects", "message_ins", "message_res")
        return sum(opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


def kill(deployment, name: str) -> None:
    """Kill a process that `up` has started."""
    state = read_state(deployment.path / control.PROCESSES)
    os.kill(next(process["pid"] for process in state["processes"] if process["name"] == name), signal.SIGKILL)


def without_waiting(deployment, up: Up, config: Path, log: Path) -> None:
    """Run the configuration asynchronously: a server update with every update, while the other site is at work.

    Its process is killed between two server updates, and it is resumed.
    """
    settings = {
        "name": "async",
        "federation.mode": "async",
        "federation.rounds": 2,
        "federation.min_updates": 1,
        "asynchronous.buffer": 1,
        "evaluation.when": "final",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    command = Command("deploy", "submit", deployment.path, config, *overrides, log=log)
    events, resumed = deployment.path / "runs" / "async-1" / "events.jsonl", up.log.read_text().count(RESUMED)
    wait(lambda: rounds(events.parent) or command.returncode is not None, lambda: told(deployment))
    kill(deployment, "SuperExec")
    assert command.wait() == 0, log.read_text() + told(deployment)
    assert up.log.read_text().count(RESUMED) == resumed + 1
    run = Run(events.parent)
    time, updates = run.results["real_time"], run.of("round")
    assert [(event["stage"], event["round"]) for event in updates] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    used = [(event["stage"], event["round"], client) for event in updates for client in event["clients"]]
    assert {(event["stage"], event["round"], event["client"]) for event in run.of("arrived")} >= set(used)
    assert sum(time["staleness"].values()) == len(used) == 4
    assert time["rounds"] == sorted(time["rounds"])
    assert [kind for kind in ("rejected", "missing", "retry") if run.of(kind)] == []
    assert "real h" in log.read_text()


@pytest.mark.slow
@pytest.mark.thorough
def test_sites_on_separate_machines_equal_the_simulation_even_after_a_crash(nginx, tmp_path, fcit):  # noqa: F811
    config = configuration(tmp_path / "common")
    deployment = plan(tmp_path / "dir")
    init(deployment, SITES, Steps())
    up, running = Up(deployment), []
    try:
        control.register(deployment, [], Steps())
        running = [start_site(deployment, str(n), config) for n in range(SITES)]
        wait(lambda: connected(deployment), explain=lambda: told(deployment))

        drawn = {**os.environ, PAGES: "1"}
        first = Command("deploy", "submit", deployment.path, config, log=tmp_path / "submit.log", environment=drawn)
        run = deployment.path / "runs" / "deployed-1"
        events = run / "events.jsonl"

        def one_stage_is_done() -> bool:
            return events.is_file() and '"event": "stage"' in events.read_text()

        wait(lambda: first.returncode is not None or one_stage_is_done(), lambda: told(deployment))
        assert first.returncode is None, (tmp_path / "submit.log").read_text() + told(deployment)
        kill(deployment, "SuperLink")  # the run outlives it
        wait(lambda: events.read_text().count('"event": "round"') == 2, lambda: told(deployment))
        kill(deployment, "SuperExec")  # and with it the run, which is resumed
        wait(lambda: RESUMED in up.log.read_text(), lambda: told(deployment))
        assert first.wait() == 0, (tmp_path / "submit.log").read_text() + told(deployment)
        out = (tmp_path / "submit.log").read_text()
        assert "the run was interrupted and goes on as run" in out
        assert "stage 2 scores" in out
        assert f"report:     {run / 'report.html'}" in out
        assert (run / "report.html").is_file()
        # Both sites were asked some questions; a busy machine may be too slow for the second answer.
        assert {(event["asked"], event["differing"]) for event in Run(run).of("verified")} == {(1, 0)}
        without_waiting(deployment, up, config, tmp_path / "async.log")
        assert stored(deployment) == 0
        code, out, err = fcit("client", "audit", deployment.site("1") / "SITE.yaml")
        assert code == 0, out + err
    finally:
        for site in running:
            site.signal(signal.SIGTERM)
        codes = [site.wait() for site in running]
        up.stop()
    assert codes == [0] * SITES

    assert main(["run", str(config), f"output={tmp_path / 'simulated'}"]) == 0
    simulated = bits(tmp_path / "simulated" / "deployed-1")
    assert len(simulated) > 4
    assert bits(run) == simulated
