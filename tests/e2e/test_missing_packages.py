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

#: Commands, one after another, in a process that finds neither the modules nor the versions of some packages, and later
#: of fewer: importing torch and transformers again would cost more than all of them.
WITHOUT = """
import importlib.machinery, json, sys

phases = json.loads(sys.argv[1])
missing = phases[0][0]


class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (d for d in super().find_distributions(*context) if d.name not in missing)


sys.meta_path[:] = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
from fcit import cli

for missing, commands in phases:
    print("codes", [cli.main(command) for command in commands])
"""
#: What neither a run nor a command that trains nothing needs.
OTHERS = ["ray", "tensorboard", "bitsandbytes", "datasets", "pyarrow"]


pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("missing")


@pytest.fixture(scope="module")
def done(world, reference, folder) -> subprocess.CompletedProcess[str]:
    """Commands that train nothing, without Flower, too; then two runs with it."""
    quiet = [
        ["export", str(reference), "--to", str(folder / "out")],
        ["report", str(reference), "--output", str(folder / "report")],
        ["chat", str(folder / "out"), "--image", str(_picture(folder)), "What is this?"],
        ["list", "method"],
    ]
    config = folder / "small.yaml"
    raw = {**SMALL, "output": str(folder), "federation": {"rounds": 1, "clients": 50, "clients_per_round": 1}}
    config.write_text(yaml.safe_dump({**raw, "evaluation": {"samples": 2, "when": "final"}}))
    run = ["run", str(config)]
    phases = [[[*OTHERS, "flwr", "pycocoevalcap"], quiet], [OTHERS, [run, [*run, "federation.engine=ray"]]]]
    home = Path(fcit.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(home)}
    call = [sys.executable, "-c", WITHOUT, json.dumps(phases)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, cwd=home)


def test_what_trains_nothing_needs_no_flower(done):
    assert "codes [0, 0, 0, 0]" in done.stdout, done.stderr


def test_a_run_needs_no_package_that_it_does_not_use_and_names_what_it_needs(done, folder):
    assert "codes [0, 2]" in done.stdout, done.stderr
    assert "needs the package 'ray'" in done.stderr
    assert "Traceback" not in done.stderr  # what is needed is named
    libraries = json.loads((folder / "small-1" / "environment.json").read_text())["libraries"]
    assert "ray" not in libraries
    assert libraries["flwr"]


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
