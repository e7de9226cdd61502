"""What a run happened on, and whether this machine is fit for one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fcit import __version__

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
)
#: Of these, what only some runs use, and which.
SOMETIMES = {"ray": "federation.engine: ray", "pycocoevalcap": "a caption scorer"}


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed; what a run does not use may be missing."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def describe() -> dict[str, Any]:
    """Versions and machine, for ``environment.json``."""
    return {
        "fcit": __version__,  # also from a source tree that is not installed
        "source": source(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "libraries": versions(),
    }


def source() -> str:
    """A hash of this program's own files: results of changed code are told apart."""
    home = Path(__file__).resolve().parent.parent
    files = sorted(f for part in ("fcit", "server", "clients") for f in (home / part).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(home)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def check() -> Iterator[tuple[str, bool, str]]:
    """Checks of ``fcit doctor``: what, fine, detail."""
    found = versions()
    for name in LIBRARIES:
        if name in found:
            yield name, True, found[name]
        elif name in SOMETIMES:
            yield name, True, f"not installed; only {SOMETIMES[name]} needs it (`make install` brings it)"
        else:
            yield name, False, "not installed; run `make install`"
    from fcit.data.benchmark import cache_folder

    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    yield "cache folder", os.access(existing, os.W_OK), f"{folder} (set FCIT_CACHE to move it)"
    from fcit.errors import FCITError
    from fcit.models.backbone import locate
    from fcit.models.features import features_size

    features, taken = features_size()
    yield "frozen features", True, f"{taken / 2**20:.0f} MB in {features} (backbone.feature_cache_gb bounds them)"
    try:
        yield "built-in model", True, locate("fcit-tiny", None)[0]
    except FCITError as error:
        yield "built-in model", False, str(error)
        return
    yield from _answer()


def _answer() -> Iterator[tuple[str, bool, str]]:
    """Load the built-in model and let it answer one question."""
    import torch

    from fcit.config import Adapter, Backbone
    from fcit.models.adapters import Adapters
    from fcit.models.backbone import Backbone as Model

    yield "torch", True, f"{torch.get_num_threads()} threads, CUDA {'yes' if torch.cuda.is_available() else 'no'}"
    model = Model(Backbone(feature_cache="off"))
    size = sum(p.numel() for p in model.model.parameters())
    Adapters(model, Adapter())
    yield "model loads", True, f"{size / 1e6:.2f} M parameters, identity width {model.identity.width()}"
    encoded = model.encode("Name the color.", None, "")
    blank = torch.zeros(1, *model.family.shape)
    text = model.generate([encoded], blank, 4)[0]
    yield "model answers", True, repr(text)


def own_packages_first() -> None:
    """Make the packages ``server`` and ``clients`` that belong to this ``fcit`` come first.

    A run must work in a folder that has its own ``server.py``.
    """
    home = str(Path(__file__).resolve().parent.parent)
    sys.path[:] = [home, *(p for p in sys.path if p != home)]


def quiet_libraries() -> None:
    """Settings that keep libraries silent and offline-safe; set before they are imported."""
    defaults = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # peft 0.21 asks transformers 5 for an attribute by its old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
