from __future__ import annotations

import os

import pytest


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
