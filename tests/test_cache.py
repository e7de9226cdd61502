"""Caches on disk stay within their bounds."""

import os
from pathlib import Path

from fcit.io import cache


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def made(folder: Path, name: str, age: int) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bytes(10))
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_what_was_of_use_longest_ago_goes_first(tmp_path):
    made(tmp_path, "a/old", 3)
    kept = made(tmp_path, "a/oldest", 4)
    made(tmp_path, "b/newer", 2)
    made(tmp_path, "b/newest", 1)
    cache.used(kept)
    assert cache.trim(tmp_path, 25) == 2
    assert files(tmp_path) == ["a/oldest", "b/newest"]


def test_a_cache_within_its_bound_is_left_alone(tmp_path):
    made(tmp_path, "a/one", 1)
    assert cache.trim(tmp_path, 10) == 0
    assert files(tmp_path) == ["a/one"]


def test_a_cache_that_is_not_there_is_empty(tmp_path):
    cache.used(tmp_path / "none")
    assert cache.trim(tmp_path / "none", 0) == 0
