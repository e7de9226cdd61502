"""What a process imports before it needs it, and the collector of cycles while it does: no times, they depend on the
machine."""

import gc
import os
import subprocess
import sys

import pytest

from fcit.io import collector

HEAVY = ("torch", "transformers", "peft", "matplotlib", "datasets")
#: What is imported there, and what of the heavy libraries and those of its own it must leave alone.
STARTS = {
    "fcit list": ("from fcit.cli import main; main(['list'])", (*HEAVY, "flwr", "ray", "rich")),
    "a run whose records are checked": (
        "from fcit.cli import main; from fcit.data import stream; from fcit.runs import create",
        (*HEAVY, "flwr", "ray", "peft"),
    ),
    "the server": ("import server.app, fcit.methods.disco, fcit.fedopt.fedavg", (*HEAVY, "ray")),
    "the driver of Ray workers": ("import fcit.federation.engines.ray, server.app", HEAVY),
}


@pytest.mark.parametrize("start", STARTS)
def test_imports_wait_until_they_are_needed(start):
    code, unwanted = STARTS[start]
    loaded = f"{code}\nimport sys; print([m for m in {unwanted!r} if m in sys.modules])"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, env=env)
    assert out.stdout.splitlines()[-1:] == ["[]"], out.stderr


def test_no_collections_while_paused():
    with collector.paused():
        with collector.paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collections_stay_off_where_they_were():
    gc.disable()
    try:
        with collector.paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_settles_once(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    collector.settle.cache_clear()
    collector.settle()
    collector.settle()
    assert len(frozen) == 1
