"""The ``fcit`` command: one file for each command, or for two that belong together."""

from fcit.cli.main import main

__all__ = ["main"]
