"""examples/slurm: the batch script under a real Slurm; Ray and fcit are stand-ins that write down what they hear."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.helpers import slurm as slurms
from tests.helpers.runs import ROOT
from tests.helpers.waiting import wait

SCRIPT = ROOT / "examples" / "slurm" / "run.sbatch"
#: `ray start --block` lasts until it ends; a Python that asks for nodes waits for them; fcit's run stops at SIGUSR1.
RAY = """#!/usr/bin/env bash
echo "$SLURMD_NODENAME ray $* [${RAY_ADDRESS:-}]" >> "$TOLD"
exec sleep 600
"""
PYTHON = """#!/usr/bin/env bash
until [ "$(grep -c " ray start" "$TOLD")" -ge $((2 + 2 * ${SLURM_RESTART_COUNT:-0})) ]; do sleep 0.1; done
echo "python $RAY_ADDRESS ${*: -1}" >> "$TOLD"
"""
FCIT = """#!/usr/bin/env bash
echo "fcit $*" >> "$TOLD"
[ "$1" = resume ] && exit 0
for last; do :; done
mkdir -p "${last#output=}/small-1"
echo "name: small" > "${last#output=}/small-1/config.yaml"
trap 'echo "asked to stop" >> "$TOLD"; kill $!; exit 75' USR1
sleep 600 &
echo "running" >> "$TOLD"
wait
"""


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck") is None:
        assert os.environ.get("FCIT_REQUIRE_SHELLCHECK") != "1", "shellcheck is not installed"
        pytest.skip("shellcheck is not installed; FCIT_REQUIRE_SHELLCHECK=1 makes this a failure")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.fixture
def slurm():
    missing = slurms.missing()
    if missing:
        assert os.environ.get("FCIT_REQUIRE_SLURM") != "1", f"{missing[0]} is not installed"
        pytest.skip(f"{missing[0]} is not installed; FCIT_REQUIRE_SLURM=1 makes this a failure")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # paths of sockets are short, so not under pytest's deep folders
    started = slurms.Slurm(folder)
    yield started
    started.close()
    shutil.rmtree(folder)


def test_a_run_that_is_asked_to_stop_goes_back_into_the_queue_and_goes_on(slurm, tmp_path):
    told = tmp_path / "told"
    told.touch()
    (tmp_path / "bin").mkdir()
    for name, text in (("ray", RAY), ("python", PYTHON), ("fcit", FCIT)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm.environment |= {"PATH": f"{tmp_path / 'bin'}:{slurm.environment['PATH']}", "TOLD": str(told)}
    submit = ("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", str(SCRIPT), "my.yaml", "seed=1")
    number = slurm.call(*submit, cwd=tmp_path).strip()
    assert number.isdigit(), number
    wait(lambda: "running" in told.read_text())
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    wait(lambda: slurms.ended(slurm, number))
    log = (tmp_path / f"fcit-{number}.log").read_text()
    assert slurm.job(number)["JobState"] == "COMPLETED", log
    assert slurm.job(number)["Restarts"] == "1"
    output, lines = tmp_path / "runs" / f"slurm-{number}", told.read_text().splitlines()
    address = f"127.0.0.1:{20000 + int(number) % 20000}"
    run = f"fcit run my.yaml federation.engine=ray ray.address=auto ray.workers=2 seed=1 output={output}"
    assert [line for line in lines if line.startswith(("fcit", "asked"))] == [
        run,
        "asked to stop",
        f"fcit resume {output / 'small-1'}",
    ]
    assert [line for line in lines if line.startswith("python")] == [f"python {address} 2"] * 2
    heads = [line for line in lines if " --head" in line]
    workers = [line for line in lines if " --address=" in line]
    assert [line.split()[0] for line in heads] == ["one", "one"]
    assert {line.split()[0] for line in workers} == {"two"}
    assert all(f"--address={address} --num-cpus=1 --num-gpus=0" in line for line in workers)
    assert all(line.endswith("[]") for line in [*heads, *workers])  # a head would join what RAY_ADDRESS names
    assert "put back into the queue" in log
