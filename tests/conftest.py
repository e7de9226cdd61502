from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from fcit.cli import main
from tests.helpers.runs import SMALL


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Every test session renders and caches into a folder of its own, which pytest-xdist's processes share."""
    import torch

    before = os.environ.get("FCIT_CACHE")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["FCIT_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["FCIT_CACHE"]
    else:
        os.environ["FCIT_CACHE"] = before


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration that runs four stages in a few seconds."""
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


@pytest.fixture
def pageless(monkeypatch):
    """Runs end without their page, which takes as long to draw as a small run takes; where nobody looks at it."""
    monkeypatch.setattr("fcit.report.page.write_page", lambda runs, path: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests marked ``slow`` come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
