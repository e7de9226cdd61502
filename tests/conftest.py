from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.helpers import forked, forkserver
from tests.helpers.runs import BACKBONE, SMALL

# What takes time to import is imported where it is used: the process that hands out the tests needs none of it.
#: What many tests import besides the commands.
OFTEN = "clients.site.executor", "datasets", "matplotlib.pyplot", "openai", "torch._functorch.partitioners"
#: Where the fork server that has imported the tests is kept.
TESTS = pytest.StashKey[forked.Forked]()


def pytest_configure() -> None:
    """Collecting imports everything and makes no garbage; looking for it takes a tenth of the time."""
    gc.disable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of this test session that pytest-xdist's processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(shared):
    """Every test session renders and caches into a folder of its own."""
    import torch

    from fcit.models.places import TINY
    from tests.helpers import lighter

    before = os.environ.get("FCIT_CACHE")
    folder = shared / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["FCIT_CACHE"] = str(folder)
    torch.set_num_threads(1)
    lighter.lighten()
    model = shared / "fcit-tiny"
    with FileLock(f"{model}.lock"):
        if not model.is_dir():
            lighter.cut_model(model)
    BACKBONE.update(model=str(model), identity=str(TINY / "clip"))
    yield
    if before is None:
        del os.environ["FCIT_CACHE"]
    else:
        os.environ["FCIT_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _flwr():
    """Flower's command line does not import Flower every time that tests or what they test call it."""
    from tests.helpers import commands

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", commands.without_importing(subprocess.run))
        yield


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration that runs two stages in a second or two."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def fcit(monkeypatch, capsys):
    """Call the command line in this process; returns (exit code, stdout, stderr)."""
    from fcit.cli import main

    def call(*args: str) -> tuple[int, str, str]:
        code = main([str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture(autouse=True)
def _page(request, monkeypatch):
    """Runs draw their page in tests that are marked so."""
    from tests.helpers import lighter

    if request.node.get_closest_marker("page"):
        monkeypatch.setenv(lighter.PAGES, "1")


@pytest.fixture(scope="session")
def world(cache):
    """The data sets of the short benchmark, for commands that would draw them in their users' size."""
    from fcit.data.mini.render import VERSION, ensure
    from fcit.data.spec import read_spec
    from fcit.io.cache import cache_folder

    for name in read_spec("fcit-mini-short").datasets:
        ensure(name, cache_folder() / VERSION)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list) -> None:
    """pytest-xdist's processes are forked from one that has imported what they would each import, with the tests."""
    forkserver.ensure(*OFTEN)
    address, config.stash[TESTS] = forkserver.with_tests(config.args)
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-P", "-S", forked.__file__, f"--server={address}"])


def pytest_collection_finish() -> None:
    """Garbage is looked for from now on, among what the tests make."""
    gc.freeze()
    gc.enable()


#: Fixtures that start programs which are not Python's own.
PROGRAMS = {"nginx", "cluster", "superlink", "slurm"}


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts other programs is marked so, and the longest files come first, so that none is left for the end.

    They are those with tests marked ``thorough``, then those with tests marked ``slow``.
    """
    for item in items:
        if PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker("thorough")
    programs, slow = ({item.path for item in items if item.get_closest_marker(name)} for name in ("thorough", "slow"))
    items.sort(key=lambda item: (item.path not in programs, item.path not in slow))
