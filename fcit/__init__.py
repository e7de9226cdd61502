"""Federated continual instruction tuning of multimodal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcit.export.assistant import Answer, Assistant, load
    from fcit.export.folder import export_run
    from fcit.runs.reader import Run, load_run
    from fcit.simulation import simulate

__version__ = "0.1.0"
__all__ = ["Answer", "Assistant", "Run", "export_run", "load", "load_run", "simulate"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `fcit --help` and the workers do not wait for it.
    if name == "simulate":
        from fcit.simulation import simulate

        return simulate
    if name in ("Run", "load_run"):
        from fcit.runs import reader

        return getattr(reader, name)
    if name in ("Answer", "Assistant", "load"):
        from fcit.export import assistant

        return getattr(assistant, name)
    if name == "export_run":
        from fcit.export.folder import export_run

        return export_run
    raise AttributeError(f"module 'fcit' has no attribute {name!r}")
