"""``fcit export``: a run's subspaces as adapters that others can load."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add
from fcit.cli.completion import completed, run_folders
from fcit.errors import EXIT_OK


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "export",
        _export,
        "write a finished run's subspaces as peft adapters",
        "fcit export runs/task-disco-1 --to my-adapters",
        "The folder holds one peft adapter for each subspace, what routes questions to them, and a model card.\n"
        "`fcit chat DIR` and fcit.load(DIR) answer with it.",
    )
    completed(command.add_argument("run", type=Path, help="run folder"), run_folders)
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    command.add_argument(
        "--force", action="store_true", help="replace an older export in this folder; other files stay"
    )


def _export(args: argparse.Namespace) -> int:
    from fcit.export.folder import export_run

    folder = export_run(args.run, args.to, args.force)
    print(f"exported: {folder}")
    print(f'try:      fcit chat {folder} --image IMAGE "QUESTION"   (from Python: fcit.load({str(folder)!r}))')
    return EXIT_OK
