"""The environment of a run: versions, machine, a hash of this program."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from fcit import __version__

#: The folder that holds the packages of this program.
HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("fcit", "server", "clients")

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "flwr",
    "ray",
    "numpy",
    "pillow",
    "safetensors",
    "pydantic",
    "pycocoevalcap",
    "dp-accounting",
)
#: Libraries that only some runs use, and which runs.
SOMETIMES = {
    "ray": "federation.engine: ray",
    "pycocoevalcap": "a caption scorer",
    "dp-accounting": "privacy.client_dp or record_dp: on",
}
#: Variables by which Flower, and the Ray under it, report nothing, look for no update and install nothing.
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed; those that a run does not use may be missing."""
    installed = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def describe() -> dict[str, Any]:
    """Versions and machine, for ``environment.json``."""
    return {
        "fcit": __version__,  # also from a source tree that is not installed
        "source": source(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processor": processor(),
        "libraries": versions(),
    }


def processor() -> str:
    """The model of the processor as the system names it; empty where it does not."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def source() -> str:
    """A hash of this program's own files, by which results of changed code differ."""
    files = sorted(f for part in PACKAGES for f in (HOME / part).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(HOME)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def own_packages_first() -> None:
    """Make the packages ``server`` and ``clients`` that belong to this ``fcit`` come first.

    A run must work in a folder that has its own ``server.py``.
    """
    sys.path[:] = [str(HOME), *(p for p in sys.path if p != str(HOME))]


def flower_environment(home: Path, loopback: str = "127.0.0.1,localhost") -> dict[str, str]:
    """Environment of a process of Flower: this one's without its ``FLWR_`` variables, but with :data:`FLOWER`.

    Args:
        home: the process' ``FLWR_HOME``.
        loopback: addresses that are reached without a proxy.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    for name in ("no_proxy", "NO_PROXY"):
        kept[name] = ",".join(filter(None, [kept.get(name), loopback]))
    return {**kept, **FLOWER, "FLWR_HOME": str(home)}


def quiet_libraries() -> None:
    """Settings that keep libraries silent and offline-safe; set before they are imported."""
    defaults = {**FLOWER, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # peft 0.21 asks transformers 5 for an attribute by its old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
