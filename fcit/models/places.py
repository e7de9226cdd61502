"""Where the files of a model are."""

from __future__ import annotations

from pathlib import Path

from fcit.errors import ConfigError

TINY = Path(__file__).parent.parent / "assets" / "fcit-tiny"


def locate(name: str, identity: str | None) -> tuple[str, str]:
    """Folder or hub name of the model and of its identity encoder.

    Raises:
        ConfigError: a model other than fcit-tiny without ``backbone.identity``.
    """
    if name == "fcit-tiny":
        if not TINY.is_dir():
            raise ConfigError(f"backbone.model: the built-in model is missing from {TINY}; reinstall fcit")
        return str(TINY / "llava"), identity or str(TINY / "clip")
    if identity is None:
        raise ConfigError(
            f"backbone.identity: needed with backbone.model={name!r}, e.g. openai/clip-vit-large-patch14-336"
        )
    return name, identity
