"""Two processes on one run folder, as by a second `fcit resume`, or by a run that is stopped and resumed at once."""

import subprocess
import sys
import time

import pytest

from fcit.errors import ConfigError
from fcit.runs.alone import LOCK, alone
from fcit.runs.folder import RunDir
from server.app import run as serve

HOLDS = """
import os, sys, time
from pathlib import Path
from fcit.runs.alone import alone
from fcit.runs.folder import RunDir

with alone(RunDir(Path(sys.argv[1]))):
    if os.fork() == 0:  # as a worker of the fork engine, which may live on for a moment
        time.sleep(60)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir.create(tmp_path, "x", "{}\n", {})


@pytest.fixture
def other(run):
    """Another process that is at work on the run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
    process.wait()


def test_a_second_process_is_told_of_the_first_and_touches_nothing(run, other):
    before = sorted(run.path.iterdir())
    with pytest.raises(ConfigError, match=f"x-1: process {other.pid} of .* is at work on this run"):
        serve(run.path, grid=None)
    assert sorted(run.path.iterdir()) == before


def test_whatever_ends_the_first_process_the_folder_is_free(run, other):
    other.kill()
    other.wait()
    assert (run.path / LOCK).is_file()
    with alone(run):
        pass
    assert not (run.path / LOCK).exists()


def test_one_that_is_about_to_end_is_waited_for(run, other):
    begun = time.monotonic()
    other.stdin.close()
    with alone(run, patience=30.0):
        assert time.monotonic() - begun < 30.0


def test_where_there_are_no_locks_nobody_is_kept_out(run, monkeypatch):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with alone(run), alone(run):
        pass
