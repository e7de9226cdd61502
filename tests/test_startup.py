"""What a process imports before it needs it, and the collector of cycles while it does: no times, they depend on the
machine."""

import gc
import json
import os
import subprocess
import sys
from itertools import pairwise

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


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What each start has loaded of what it must leave alone; all in one process, as each leaves alone what the next
    one does.
    """
    lines = ["import json, sys", "found = {}"]
    for start, (code, unwanted) in STARTS.items():
        lines += [code, f"found[{start!r}] = [m for m in {unwanted!r} if m in sys.modules]"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "\n".join([*lines, "print(json.dumps(found))"])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    return dict(json.loads(out.stdout.splitlines()[-1]))


@pytest.mark.parametrize("start", STARTS)
def test_imports_wait_until_they_are_needed(start, loaded):
    assert loaded[start] == []


def test_what_a_start_leaves_alone_the_ones_before_do_too():
    """Else the test above would blame a start for another's imports."""
    unwanted = [set(names) for _, names in STARTS.values()]
    assert all(after <= before for before, after in pairwise(unwanted))


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
