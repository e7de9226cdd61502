"""An asynchronous federation: killed again and again, on workers, it ends in the bits of one that was not."""

import signal

import pytest

from clients.app import app
from fcit.federation.engines.inline import InlineGrid
from fcit.runs.reader import Run
from server.app import run as serve
from tests.e2e.test_resume import new_run
from tests.helpers.commands import fcit as fcit_process
from tests.helpers.runs import bits

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

MOMENTS = (
    "server.late,LateSpill.keep,after,1",
    "server.checkpoint,write_json,before,2",
    "server.late,LateSpill.join_late,after,1",
)


def test_killed_and_on_workers_it_ends_in_the_same_bits(tmp_path):
    plain = new_run(
        tmp_path,
        federation={"mode": "async", "clients_per_round": 2, "rounds": 3},
        devices={"profile": "lognormal"},
        asynchronous={"concurrency": 3},
        evaluation={"samples": 4, "when": "final"},
    )
    serve(plain.path, InlineGrid(app, 50))
    run = tmp_path / "killed-1"
    command = ["run", plain.config, f"output={tmp_path}", "name=killed", "federation.engine=fork", "fork.workers=2"]
    for point in MOMENTS:
        done = fcit_process(*command, point=point)
        assert done.returncode == -signal.SIGKILL, done.stderr
        command = ["resume", run]
    done = fcit_process(*command)
    assert done.returncode == 0, done.stderr
    assert bits(run) == bits(plain.path)
    one, other = Run(plain.path), Run(run)
    assert one.results["simulated"] == other.results["simulated"]
    assert one.results["traffic"]["orders"] == other.results["traffic"]["orders"]
    assert one.results["simulated"]["dropped"] == 4
    assert not (run / "late").exists()
