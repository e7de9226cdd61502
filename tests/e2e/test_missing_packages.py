"""A package that a command does not use may be missing; one that it needs is named in a sentence."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fcit
from fcit.cli import main
from fcit.doctor import machine
from fcit.runs import environment
from tests.helpers.runs import SMALL

#: Commands, one after another, in a process that finds neither the modules nor the versions of some packages.
WITHOUT = """
import importlib.machinery, json, sys

missing, commands = json.loads(sys.argv[1])


class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (d for d in super().find_distributions(*context) if d.name not in missing)


sys.meta_path[:] = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
from fcit import cli

codes = []
for command in commands:
    codes.append(cli.main(command))
print("codes", codes)
"""


def without(missing: list[str], *commands: list[str]) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", WITHOUT, json.dumps([missing, commands])]
    home = Path(fcit.__file__).parents[1]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(home)}, cwd=home)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    raw = {**SMALL, "output": str(tmp_path), "federation": {"rounds": 1, "clients": 50, "clients_per_round": 1}}
    path.write_text(yaml.safe_dump({**raw, "evaluation": {"samples": 2, "when": "final"}}))
    return path


def test_a_run_needs_no_package_that_it_does_not_use_and_names_what_it_needs(world, config):
    run = ["run", str(config)]
    done = without(["ray", "tensorboard", "bitsandbytes", "datasets", "pyarrow"], run, [*run, "federation.engine=ray"])
    assert "codes [0, 2]" in done.stdout, done.stderr
    assert "needs the package 'ray'" in done.stderr
    assert "Traceback" not in done.stderr  # what is needed is named
    libraries = json.loads((config.parent / "small-1" / "environment.json").read_text())["libraries"]
    assert "ray" not in libraries
    assert libraries["flwr"]


def test_what_trains_nothing_needs_no_flower(reference, tmp_path):
    question = ["chat", str(tmp_path / "out"), "--image", str(_picture(tmp_path)), "What is this?"]
    commands = [
        ["export", str(reference), "--to", str(tmp_path / "out")],
        ["report", str(reference), "--output", str(tmp_path / "report")],
        question,
        ["list", "method"],
    ]
    done = without(["flwr", "ray", "pycocoevalcap", "tensorboard", "bitsandbytes"], *commands)
    assert "codes [0, 0, 0, 0]" in done.stdout, done.stderr


def _picture(folder: Path) -> Path:
    from PIL import Image

    file = folder / "a.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file)
    return file


def test_versions_of_what_is_there(monkeypatch):
    real = environment.metadata.version

    def version(name: str) -> str:
        if name in ("ray", "fcit"):
            raise environment.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(environment.metadata, "version", version)
    found = environment.describe()
    assert "ray" not in found["libraries"]
    assert found["libraries"]["torch"]
    assert found["fcit"] == fcit.__version__
    checks = machine.check()
    seen = {what: (fine, detail) for what, fine, detail in (next(checks) for _ in environment.LIBRARIES)}
    assert seen["ray"] == (
        True,
        "not installed; only federation.engine: ray needs it (`make install` brings it)",
    )
    assert seen["torch"][0]


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((Path(fcit.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == fcit.__version__


def test_a_fault_of_ours_is_not_called_a_missing_package(monkeypatch):
    def broken(args):
        raise ModuleNotFoundError("No module named 'fcit.none'", name="fcit.none")

    monkeypatch.setattr("fcit.cli.list._list", broken)
    with pytest.raises(ModuleNotFoundError):
        main(["list"])
