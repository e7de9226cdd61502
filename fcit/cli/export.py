"""``fcit export``: a run's subspaces as adapters that others can load."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add
from fcit.cli.completion import completed, run_folders
from fcit.errors import EXIT_OK, ConfigError

_TEXT = """\
The folder holds one peft adapter for each subspace, what routes questions to them, and a model card.
`fcit chat DIR`, `fcit serve DIR` and fcit.load(DIR) answer with it.

--merge writes one subspace, added to the weights of the base model, in place of the adapters: transformers loads it
without peft. --push uploads what was written, to a private repository; nothing leaves this machine without it.
--tasks writes the benchmark's questions as tasks of lmms-eval, apart from the export, for they hold the truths."""
_EXAMPLE = """\
fcit export runs/task-disco-1 --to my-adapters
  fcit export runs/task-disco-1 --to merged --merge 0
  fcit export runs/task-disco-1 --to my-adapters --force --push me/my-adapters
  fcit export runs/task-disco-1 --to my-adapters --force --tasks my-tasks"""


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add("export", _export, "write a finished run's subspaces as peft adapters", _EXAMPLE, _TEXT)
    completed(command.add_argument("run", type=Path, help="run folder"), run_folders)
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    command.add_argument(
        "--force", action="store_true", help="replace an older export in this folder; other files stay"
    )
    command.add_argument("--merge", metavar="NAME", help="write this subspace merged into the base model")
    command.add_argument("--push", metavar="REPO", help="upload to this model repository (HF_TOKEN, HF_ENDPOINT)")
    command.add_argument("--public", action="store_true", help="with --push: everybody may read it")
    command.add_argument("--tasks", type=Path, metavar="DIR", help="write tasks of lmms-eval to this folder")


def _export(args: argparse.Namespace) -> int:
    from fcit.export.folder import PARTS, export_merged, export_run

    if args.public and args.push is None:
        raise ConfigError("--public: says who may read what --push REPO uploads; there is no --push")
    if args.push is not None:
        from fcit.export.push import check_token

        check_token(args.push)
    if args.merge is None:
        folder, parts = export_run(args.run, args.to, args.force), list(PARTS)
    elif args.force:
        raise ConfigError("--force: replaces adapters; name an empty folder (--to) for a merged model")
    else:
        folder = export_merged(args.run, args.merge, args.to)
        parts = sorted(file.name for file in folder.iterdir())
    print(f"exported: {folder}")
    if args.push is not None:
        from fcit.export.push import push

        print(f"pushed:   {push(folder, args.push, parts, args.public)}")
    if args.tasks is not None:
        from fcit.export.tasks import write_tasks

        print(f"tasks:    {write_tasks(args.run, args.tasks)}")
    if args.merge is None:
        print(f'try:      fcit chat {folder} --image IMAGE "QUESTION"   (from Python: fcit.load({str(folder)!r}))')
    return EXIT_OK
