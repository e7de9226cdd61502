"""The thin Flower app of a deployment: the installed packages ``server`` and ``clients``, nothing else."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from fcit import __version__
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import PUBLIC, DeployError, Steps

_PACKAGES = ("server", "clients")
_PROJECT = f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "fcit"
version = "{__version__}"
description = "Federated continual instruction tuning: the server's and the clients' part."
license = "Apache-2.0"
dependencies = []  # everything is installed where the app runs: nothing is fetched for a run

[tool.flwr.app]
publisher = "fcit"
fab-include = ["server/**/*.py", "clients/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
run-dir = ""
"""


def _sources() -> dict[str, Path]:
    """The app's files as installed, by their path in the app."""
    home = Path(__file__).resolve().parents[2]
    return {str(f.relative_to(home)): f for part in _PACKAGES for f in sorted((home / part).rglob("*.py"))}


def write(deployment: Deployment, steps: Steps) -> str:
    """Write the app anew and return its hash, the one that sites pin; empty in a dry run."""
    app = deployment.app
    sources = _sources()
    for old in sorted(app.rglob("*.py")):
        if str(old.relative_to(app)) not in sources:
            steps.say(f"remove {old}")
            if not steps.dry:
                old.unlink()
    steps.folder(app)
    steps.write(app / "pyproject.toml", _PROJECT, PUBLIC)
    steps.say(f"copy  {len(sources)} files of {' and '.join(_PACKAGES)} to {app}")
    if not steps.dry:
        for name, source in sources.items():
            (app / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, app / name)
    return fab_hash(deployment, steps)


def fab_hash(deployment: Deployment, steps: Steps) -> str:
    """Build the app as `flwr run` will and return the SHA-256 of the bundle.

    Raises:
        DeployError: Flower cannot build it.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = deployment.environment(deployment.home)
        steps.run("flwr", "build", "--app", deployment.app, env=where, cwd=Path(folder))
        if steps.dry:
            return ""
        bundles = list(Path(folder).glob("*.fab"))
        if len(bundles) != 1:
            raise DeployError(f"flwr build left {len(bundles)} bundles for {deployment.app}, expected one")
        return hashlib.sha256(bundles[0].read_bytes()).hexdigest()


def differs(deployment: Deployment) -> list[str]:
    """Files in which the app is not what is installed here: after an update of fcit, or changed by hand."""
    expected = {name: source.read_bytes() for name, source in _sources().items()}
    expected["pyproject.toml"] = _PROJECT.encode()
    there = [f for f in deployment.app.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    found = {str(f.relative_to(deployment.app)): f.read_bytes() for f in there}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
