"""The fork engine equals inline bit for bit, though every busy worker is killed on the way."""

import os
import signal
from contextlib import closing

import pytest

from fcit.config import dump, parse
from fcit.federation.engines.fork import ForkGrid
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from tests.helpers.runs import SMALL, bits

pytestmark = pytest.mark.slow


def test_fork_equals_inline_with_workers_killed_in_a_round(reference, tmp_path):
    from clients.app import app
    from server.app import run as serve

    class Killer:
        killed: tuple[int, ...] = ()

        def say(self, kind, **values):
            if kind == "client" and not self.killed and grid.busy:
                self.killed = tuple(grid.pids)
                for pid in self.killed:
                    os.kill(pid, signal.SIGKILL)

    config = parse({**SMALL, "output": str(tmp_path), "fork": {"workers": 2}})
    run, killer = RunDir.create(tmp_path, "small", dump(config), describe()), Killer()
    with closing(ForkGrid(app, config.federation.clients, config, run.memory)) as grid:
        serve(run.path, grid, killer)
        assert len(killer.killed) == 2
        assert not set(killer.killed) & set(grid.pids)
    assert bits(run.path) == bits(reference)
