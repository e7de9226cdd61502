"""The benchmark files that come with the package; importing this waits for no library of the data."""

from __future__ import annotations

from pathlib import Path

import yaml

SHIPPED = Path(__file__).parent / "benchmarks"

#: libyaml's where it is installed, ten times as fast. Files of others go through fcit.io.bounded, which bounds nesting.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def shipped() -> list[str]:
    """Names of the benchmarks that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def summary(name: str) -> str:
    """What a shipped benchmark is, in a sentence: the ``description`` in its file."""
    loader = _Loader((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    try:
        return str(loader.get_single_data()["description"]).strip()
    finally:
        loader.dispose()
