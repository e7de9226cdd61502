"""Fixtures of the tests of models."""

import shutil
from pathlib import Path

import pytest

from fcit.models.backbone import TINY
from tests.helpers.llava import small_llava
from tests.helpers.qwen import small_qwen


@pytest.fixture
def tiny(tmp_path) -> Path:
    """fcit-tiny to be spoilt: ``llava`` and ``clip``."""
    shutil.copytree(TINY, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_llava(folder)
    small_qwen(folder)
    return folder
