"""The benchmark files that come with the package; importing this waits for no library of the data."""

from __future__ import annotations

from pathlib import Path

import yaml

SHIPPED = Path(__file__).parent / "benchmarks"
#: Of those that nothing is trained of: questions for ``evaluation.held_out``.
HELD_OUT = SHIPPED / "held-out"

#: libyaml's where it is installed, ten times as fast. Files of others go through fcit.io.bounded, which bounds nesting.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def shipped(folder: Path = SHIPPED) -> list[str]:
    """Names of the benchmarks that come with the package; in :data:`HELD_OUT` those without anything to train."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def file_of(name: str) -> Path:
    """The file that a shipped benchmark of this name has, or would have."""
    held_out = HELD_OUT / f"{name}.yaml"
    return held_out if held_out.name in {path.name for path in HELD_OUT.glob("*.yaml")} else SHIPPED / f"{name}.yaml"


def summary(name: str) -> str:
    """What a shipped benchmark is, in a sentence: the ``description`` in its file."""
    loader = _Loader(file_of(name).read_text(encoding="utf-8"))
    try:
        return str(loader.get_single_data()["description"]).strip()
    finally:
        loader.dispose()
