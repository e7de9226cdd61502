"""``fcit chat``: ask what a run learnt, and see which subspaces spoke."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fcit.cli.commands import Add
from fcit.cli.completion import completed, run_folders
from fcit.errors import EXIT_OK, ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from fcit.export.assistant import Answer, Assistant

SHOWN = 3  # subspaces beside an answer
WIDTH = 24  # characters of a full bar
HELP = (
    "a question, or: /image PATH (another image; no path: none), /add PATH (one more image), /subspace NAME (it alone; "
    "none: mixed), /help, Ctrl-D (end)"
)


@dataclass
class Chat:
    """A conversation without a memory: each question is asked on its own, about the current images, if any."""

    assistant: Assistant
    console: Console
    images: list[Path] = field(default_factory=list)
    subspace: str | None = None
    max_new_tokens: int | None = None
    as_json: bool = False

    def ask(self, question: str) -> None:
        """Answer and show which subspaces gave the answer.

        Raises:
            ConfigError: no such subspace. DataError: an image cannot be read.
        """
        from rich.markup import escape

        [answer] = self.assistant.answer([self.images], [question], self.max_new_tokens, self.subspace)
        if self.as_json:
            names = [str(image) for image in self.images]
            shown = names[0] if len(names) == 1 else names or None
            whole = {"question": question, "image": shown, "text": answer.text, "mix": answer.mix}
            print(json.dumps(whole), flush=True)
            return
        self.console.print(escape(answer.text) or "[dim](no answer)[/dim]", style="bold", highlight=False)
        for line in self._speakers(answer):
            self.console.print(line, highlight=False)

    def _speakers(self, answer: Answer) -> Iterator[str]:
        """The strongest subspaces: name, bar of the weight, what it was trained on."""
        from rich.markup import escape

        order = sorted(answer.mix, key=lambda name: -answer.mix[name])
        for name in order[:SHOWN]:
            weight = answer.mix[name]
            filled = round(min(max(weight, 0.0), 1.0) * WIDTH)
            bar = f"[cyan]{'━' * filled}[/cyan][dim]{'─' * (WIDTH - filled)}[/dim]"
            trained = ", ".join(self.assistant.trained_on.get(name, {}))
            yield f"  {bar} {weight:6.1%}  {escape(name)}{f'  [dim]{escape(trained)}[/dim]' if trained else ''}"
        rest = sum(answer.mix[name] for name in order[SHOWN:])
        if rest >= 0.0005:  # what would be shown as 0.0% is not
            yield f"  {' ' * WIDTH} {rest:6.1%}  the other {len(order) - SHOWN} together"

    def line(self, text: str) -> None:
        """A line of the interactive loop: a command or a question. Raises as :meth:`ask`."""
        command, _, rest = text.strip().partition(" ")
        if command == "/image" and not rest.strip():
            self.images = []
        elif command in ("/image", "/add"):
            path = Path(rest.strip()).expanduser()
            if not path.is_file():
                raise DataError(f"{command}: no such file {rest.strip()!r}")
            self.images = [*self.images, path] if command == "/add" else [path]
        elif command == "/subspace":
            self.subspace = rest.strip() or None
        elif command == "/help":
            self.console.print(HELP, markup=False)
        elif command.startswith("/"):
            raise ConfigError(f"unknown command {command}; {HELP}")
        elif text.strip():
            self.ask(text.strip())


def interactive(chat: Chat) -> int:
    """Read lines until the input ends; a mistake costs one line, not the conversation."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (arrow keys and history in input())

        chat.console.print(HELP, markup=False, style="dim")
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return EXIT_OK
        try:
            chat.line(text)
        except (ConfigError, DataError) as error:
            print(f"fcit: {error}", file=sys.stderr, flush=True)


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "chat",
        _chat,
        "ask the model of a run or an export",
        'fcit chat my-adapters --image cat.png "What is this?"\n  fcit chat runs/demo-disco-1',
        "Each answer comes with the subspaces that gave it. Without a question: a conversation, line by line.",
    )
    loading(command)
    command.add_argument("question", nargs="?", help="worded as in training, format line included: it decides the mix")
    command.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        help="what the question is about; again for every further image",
    )
    command.add_argument("--subspace", metavar="NAME", help="answer with this subspace alone")
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the run's)")
    command.add_argument("--json", action="store_true", help="one JSON object for each answer")


def loading(command: argparse.ArgumentParser) -> None:
    """Declare what says which folder is loaded to answer with, and how."""
    completed(command.add_argument("dir", type=Path, help="folder made by `fcit export`, or a run folder"), run_folders)
    command.add_argument("--backbone", metavar="MODEL", help="folder or hub name of the frozen model, if it moved")
    command.add_argument("--identity", metavar="CLIP", help="folder or hub name of the CLIP that routes, if it moved")
    command.add_argument("--device", help="cpu or cuda[:n] (default: the run's, if this machine has it)")
    command.add_argument("--other-weights", action="store_true", help="take a backbone that is not the run's")


def loaded(args: argparse.Namespace) -> Assistant:
    """The assistant that :func:`loading` declares."""
    from fcit.export.assistant import load
    from fcit.io.console import notes

    with notes().status("loading the model"):  # shown on a terminal only
        return load(
            args.dir,
            backbone=args.backbone,
            identity=args.identity,
            device=args.device,
            other_weights=args.other_weights,
        )


def _chat(args: argparse.Namespace) -> int:
    from fcit.io.console import console

    for image in args.image:
        if not image.is_file():
            raise ConfigError(f"--image: no such file {str(image)!r}")
    talk = Chat(loaded(args), console(), args.image, args.subspace, args.max_new_tokens, args.json)
    if args.question is None:
        return interactive(talk)
    talk.ask(args.question)
    return EXIT_OK
