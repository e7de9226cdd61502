"""The lowest and the highest transformers, peft, flwr and ray that pyproject.toml allows.

``python -m tests.evidence.compat [models|wire] [lowest|highest]``. ``models`` is transformers and peft (export,
reload, a run, the published path), ``wire`` is flwr and ray (engines, Flower's simulation, a deployment with its
door). Each pair is installed into an environment of its own that comes before this one's packages, with what it needs
and this one does not have (flwr 1.41 wants another uv than 1.42); everything else stays: what is tried is what a user
has who has only these two older or newer. Flower's extra ``simulation`` names one release of ray, so that is both the
lowest and the highest.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "compat.json"
#: Libraries of a group and the tests that show it works.
GROUPS = {
    "models": (
        ("transformers", "peft"),
        (
            "tests/models/test_adapters.py",
            "tests/e2e/test_export.py",
            "tests/e2e/test_runs.py::test_run_folder_is_complete",
            "tests/e2e/test_official.py",
        ),
    ),
    "wire": (
        ("flwr", "ray"),
        (
            "tests/federation",
            "tests/clients",
            "tests/fedopt/test_server_side.py",
            "tests/server/test_courier.py",
            "tests/deploy",
            "tests/e2e/test_flower.py",
            "tests/e2e/test_ray.py",
            "tests/e2e/test_deployment.py",
            "tests/e2e/test_examples.py",
        ),
    ),
}
WHICH = ("lowest", "highest")


def allowed(group: str) -> dict[str, str]:
    """The requirement of each library of a group, e.g. ``transformers>=5.20,<6``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {re.match(r"[\w-]+", line).group(): line for line in project["dependencies"]}
    return {name: found[name] for name in GROUPS[group][0]}


def wanted(group: str, which: str) -> list[str]:
    """What pip is asked for: the lower bound itself, or the newest that is allowed."""
    if which == "highest":
        return list(allowed(group).values())
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in allowed(group).values()]


def environment(folder: Path) -> Path:
    """An environment whose packages come before this one's; returns its Python."""
    venv.create(folder, symlinks=True)
    inner = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    here = sysconfig.get_path("purelib")
    (inner / "behind.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return folder / "bin" / "python"


def complete(python: Path, names: tuple[str, ...]) -> None:
    """Add the programs of these distributions that are not in the environment: fcit's, and what is not installed again.

    Units, doors and tests look for them beside the Python they run with.
    """
    scripts = [s for name in names for s in metadata.distribution(name).entry_points.select(group="console_scripts")]
    for script in scripts:
        program = python.with_name(script.name)
        if not program.exists():
            program.write_text(
                f"#!{python}\nimport sys\n\nfrom {script.module} import {script.attr} as main\n\nsys.exit(main())\n"
            )
            program.chmod(0o755)


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The versions that are imported there."""
    code = f"import importlib as i; print(*(i.import_module(n).__version__ for n in {names!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tempfile.gettempdir())
    return dict(zip(names, done.stdout.split()[-len(names) :], strict=True))


def tried(group: str, which: str) -> dict[str, object]:
    """Install a pair, run the tests with it, and say what came of it."""
    libraries, tests = GROUPS[group]
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--upgrade"]
        subprocess.run([*pip, *wanted(group, which)], check=True)
        complete(python, ("fcit", *libraries))
        found = versions(python, libraries)
        print(group, which, found, flush=True)
        programs = [str(python.parent), str(Path(sys.executable).parent)]
        path = {"PATH": os.pathsep.join([*programs, os.environ["PATH"], "/usr/sbin"])}
        begin = time.perf_counter()
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-rfEs", *tests]
        done = subprocess.run(pytest, env={**os.environ, **path}, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:], flush=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{group}, {which}: pytest did not run ({done.returncode})\n{done.stdout}\n{done.stderr}")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    skipped = re.findall(r"^SKIPPED (.+)", done.stdout, re.MULTILINE)
    return {**found, **counts, "failures": failed, "skips": skipped, "seconds": round(time.perf_counter() - begin)}


def main() -> None:
    figures = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    asked = sys.argv[1:]
    groups = [name for name in asked if name in GROUPS] or list(GROUPS)
    for group in groups:
        figures.setdefault(group, {})
        figures[group] |= {"allowed": allowed(group), "tests": GROUPS[group][1], "python": platform.python_version()}
        for which in [name for name in asked if name in WHICH] or WHICH:
            figures[group][which] = tried(group, which)
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
