"""``fcit export`` and ``fcit chat``: what a run learnt, given to others and asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fcit.errors import EXIT_OK, ConfigError


def _export(args: argparse.Namespace) -> int:
    from fcit.export.folder import export_run

    folder = export_run(args.run, args.to, args.force)
    print(f"exported: {folder}")
    print(f'try:      fcit chat {folder} --image IMAGE "QUESTION"   (from Python: fcit.load({str(folder)!r}))')
    return EXIT_OK


def _chat(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fcit import chat
    from fcit.serving import load

    for image in args.image:
        if not image.is_file():
            raise ConfigError(f"--image: no such file {str(image)!r}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    with Console(stderr=True).status("loading the model"):  # shown on a terminal only
        assistant = load(args.dir, backbone=args.backbone, identity=args.identity, device=args.device,
                         other_weights=args.other_weights)  # fmt: skip
    talk = chat.Chat(assistant, console, args.image, args.subspace, args.max_new_tokens, args.json)
    if args.question is None:
        return chat.interactive(talk)
    talk.ask(args.question)
    return EXIT_OK


def _anywhere(parser: argparse.ArgumentParser) -> None:
    """Let positional arguments stand after options: Python 3.11 forgets an optional one there (`--image I "Q"`)."""
    plain = parser.parse_known_args

    def parse(args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        setattr(parser, "parse_known_args", plain)  # noqa: B010  (a method of this one object)
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            setattr(parser, "parse_known_args", parse)  # noqa: B010

    setattr(parser, "parse_known_args", parse)  # noqa: B010


def arguments(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands to the parser."""
    export = add(
        "export", _export, "write a finished run's subspaces as peft adapters, with routing and a model card",
        "fcit export runs/task-disco-1 --to my-adapters",
    )  # fmt: skip
    export.add_argument("run", type=Path, help="run folder")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument("--force", action="store_true", help="replace an export that is there; other files stay")
    chat = add(
        "chat", _chat, "ask what a run learnt, and see which subspaces spoke; without a question, a conversation",
        'fcit chat my-adapters --image cat.png "What is this?"',
    )  # fmt: skip
    chat.add_argument("dir", type=Path, help="folder made by `fcit export`, or a run folder")
    chat.add_argument("question", nargs="?", help="worded as in training, format line included: it decides the mix")
    chat.add_argument("--image", type=Path, action="append", default=[],
                      help="what the question is about; again for every further image")  # fmt: skip
    chat.add_argument("--subspace", metavar="NAME", help="let this one alone answer")
    chat.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the run's)")
    chat.add_argument("--backbone", metavar="MODEL", help="folder or hub name of the frozen model, if it moved")
    chat.add_argument("--identity", metavar="CLIP", help="the same for the CLIP that routes")
    chat.add_argument("--device", help="cpu or cuda[:n] (default: the run's, if this machine has it)")
    chat.add_argument("--other-weights", action="store_true", help="take a backbone that is not the run's")
    chat.add_argument("--json", action="store_true", help="one JSON object for each answer")
    _anywhere(chat)
