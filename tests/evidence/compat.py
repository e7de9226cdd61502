"""Export, reload and a run at the lowest and the highest transformers and peft that pyproject.toml allows.

``python -m tests.evidence.compat [lowest|highest]``. Each pair is installed into a folder of its own that comes before
this environment's packages, everything else stays: what is tried is what a user has who has only these two older or
newer. What they need of others (tokenizers, huggingface_hub) they check themselves when imported.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "compat.json"
LIBRARIES = ("transformers", "peft")
TESTS = (
    "tests/models/test_adapters.py",
    "tests/e2e/test_export.py",
    "tests/e2e/test_runs.py::test_run_folder_is_complete",
    "tests/e2e/test_official.py",
)


def allowed() -> dict[str, str]:
    """The requirement of each library, e.g. ``transformers>=5.20,<6``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {re.match(r"[\w-]+", line).group(): line for line in project["dependencies"]}
    return {name: found[name] for name in LIBRARIES}


def wanted(which: str) -> list[str]:
    """What pip is asked for: the lower bound itself, or the newest that is allowed."""
    if which == "highest":
        return list(allowed().values())
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in allowed().values()]


def tried(which: str) -> dict[str, object]:
    """Install a pair, run the tests with it, and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *wanted(which)]
        subprocess.run(pip, check=True)
        versions = {d.name: d.version for d in metadata.distributions(path=[folder])}
        print(which, versions, flush=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        shown = "import transformers, peft; print(transformers.__version__, peft.__version__)"
        seen = subprocess.run(
            [sys.executable, "-c", shown], env=environment, capture_output=True, text=True, check=True
        )
        if seen.stdout.split() != [versions[name] for name in LIBRARIES]:
            raise RuntimeError(f"{which}: {versions} were installed, {seen.stdout.split()} are imported")
        begin = time.perf_counter()
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *TESTS]
        done = subprocess.run(pytest, env=environment, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:], flush=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{which}: pytest did not run ({done.returncode})\n{done.stdout}\n{done.stderr}")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return {**versions, **counts, "failures": failed, "seconds": round(time.perf_counter() - begin)}


def main() -> None:
    figures = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    figures |= {"allowed": allowed(), "tests": TESTS, "python": platform.python_version()}
    for which in sys.argv[1:] or ("lowest", "highest"):
        figures[which] = tried(which)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
