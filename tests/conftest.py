from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Every test session renders and caches into a folder of its own."""
    import torch

    before = os.environ.get("FCIT_CACHE")
    os.environ["FCIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["FCIT_CACHE"]
    else:
        os.environ["FCIT_CACHE"] = before
