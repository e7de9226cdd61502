"""The same two apps under Flower's own simulation: `flwr run .` equals the inline engine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from flwr.supercore.control import ControlHttpClient

from fcit.cli import main
from tests.helpers.runs import BACKBONE, bits
from tests.helpers.superlink import answers, end, free_port
from tests.helpers.waiting import LONG, wait

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

ROOT = Path(__file__).parents[2]
FLWR = Path(sys.executable).with_name("flwr")

BENCHMARK = {
    "name": "one-stage",
    "source": "mini",
    "datasets": {
        "super-clevr": {"train": "super-CLEVR/train.json", "test": "super-CLEVR/test.json", "scorer": "exact"}
    },
    "tasks": [["super-clevr"]],
}
CONFIG = {
    "name": "stock",
    "benchmark": "one.yaml",
    "method": "disco",
    "federation": {"rounds": 2, "clients": 6, "clients_per_round": 2},
    "data": {"max_records": 120},
    "evaluation": {"samples": 4},
    "backbone": BACKBONE,
}


@pytest.fixture
def superlink(tmp_path):
    """A SuperLink of our own in simulation mode; `flwr(...)` talks to it, and so does a client in this process."""
    port = free_port()
    home = tmp_path / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",  # Flower's simulation would join a Ray that other tests have started on this host
        "PATH": f"{FLWR.parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        FLWR.with_name("flower-superlink"),
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--isolation",
        "subprocess",
    ]
    with (tmp_path / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )

    def flwr(*arguments: str):
        form = [] if arguments[0] == "log" else ["--format", "json"]
        out = subprocess.run([FLWR, *arguments, *form], env=environment, cwd=ROOT, capture_output=True, text=True)
        return json.loads(out.stdout) if form else out.stdout

    try:
        wait(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "superlink.log").read_text()
        yield flwr, home, ControlHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, [])
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=LONG)


def test_flwr_run_equals_inline(superlink, tmp_path):
    flwr, home, control = superlink
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(BENCHMARK))
    config = tmp_path / "stock.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "output": str(tmp_path / "stock")}))
    started = flwr(
        "run",
        ".",
        "--federation-config",
        "num-supernodes=6 client-resources-num-cpus=1 init-args-num-cpus=1",  # one actor: each imports torch
        "-c",
        f'config="{config}" overrides="seed=1"',
    )
    number = str(started["run-id"])
    log = tmp_path / "superlink.log"
    wait(lambda: re.search(rf"Finished task \d+ of run {number}", log.read_text()), log.read_text)
    # The exit code of `flwr run` says nothing about the run; its status does.
    assert wait(lambda: end(control, int(number)), log.read_text) == "finished:completed", flwr("log", number, "--show")

    assert main(["run", str(config), "seed=1", f"output={tmp_path / 'inline'}"]) == 0
    assert bits(tmp_path / "stock" / "stock-1") == bits(tmp_path / "inline" / "stock-1")

    # Only the two apps travelled; fcit came from where it is installed.
    bundle = next((home / "apps").iterdir())
    assert {p.relative_to(bundle).parts[0] for p in bundle.rglob("*.py")} == {"server", "clients"}


def test_a_folder_with_its_own_server_does_not_get_in_the_way(world, tmp_path):
    folder = tmp_path / "project"
    (folder / "clients").mkdir(parents=True)
    (folder / "server.py").write_text("raise RuntimeError('the wrong server')\n")
    (folder / "clients" / "__init__.py").write_text("raise RuntimeError('the wrong clients')\n")
    (folder / "one.yaml").write_text(yaml.safe_dump(BENCHMARK))
    (folder / "run.yaml").write_text(yaml.safe_dump({**CONFIG, "federation": {**CONFIG["federation"], "rounds": 1}}))
    fcit = shutil.which("fcit", path=str(FLWR.parent))
    done = subprocess.run([fcit, "run", "run.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "stock-1" / "report.html").is_file()
