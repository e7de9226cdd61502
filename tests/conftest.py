from __future__ import annotations

import gc
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from fcit.cli import main
from fcit.models.places import TINY
from tests.helpers import commands, lighter
from tests.helpers.runs import BACKBONE, SMALL

# Collecting imports everything and makes no garbage; looking for it takes a tenth of the time.
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

    def call(*args: str) -> tuple[int, str, str]:
        code = main([str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture(autouse=True)
def _page(request, monkeypatch):
    """Runs draw their page in tests that are marked so."""
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


def pytest_collection_finish() -> None:
    """Garbage is looked for from now on, among what the tests make."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process is left alone with one of them at the end.

    They are those whose tests start Flower's or Ray's processes, then those with tests marked ``slow``.
    """
    starts = {item.path for item in items if {"nginx", "cluster", "superlink"} & set(getattr(item, "fixturenames", ()))}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in starts, item.path not in slow))
