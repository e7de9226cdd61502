"""The parser of ``fcit`` and its exit codes."""

from __future__ import annotations

import argparse
import os
import select
import sys
from typing import Any, NoReturn

from fcit import __version__
from fcit.cli import bench, chat, check, client, data, deploy, doctor, evaluate, export, report, run, serve
from fcit.cli import list as listing
from fcit.errors import EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED, EXIT_USAGE, FCITError
from fcit.io.printable import printable
from fcit.registry import nearest

#: In the order of ``fcit --help``.
COMMANDS = (run, report, bench, listing, check, data, export, chat, serve, evaluate, deploy, client, doctor)

_EXAMPLES = """\
`fcit COMMAND --help` explains a command. First steps: `fcit run configs/demo-disco.yaml` (about a minute on a CPU),
then `fcit report runs/demo-disco-1`.

examples:
  fcit run configs/demo-disco.yaml                       one run, in the folder runs/
  fcit run configs/task-disco.yaml seed=1 training.lr=0.002
  fcit run configs/task-disco.yaml method=finetune setting=heterogeneous
  fcit resume runs/task-disco-1                          go on after an interruption
  fcit report runs/demo-disco-1 runs/demo-finetune-1     compare runs, draw their matrices
  fcit bench configs/bench/demo.yaml                     many runs and the table that compares them
  fcit list                                              methods, scorers, benchmarks
  fcit list settings                                     every setting with its default
  fcit check ./mine.py:MyMethod                          test a method or an optimiser of your own
  fcit evaluate --predictions merge.jsonl --dataset iconqa --root /data/fcit   score others' predictions officially
  fcit export runs/task-disco-1 --to my-adapters         peft adapters that others can load
  fcit chat my-adapters --image cat.png "What is this?"  ask them, see which spoke
  fcit serve my-adapters --images pictures               the same over HTTP, for OpenAI's clients
  fcit data check fcit-task --root /data/fcit            is the published benchmark complete? also: data download
  fcit deploy init /srv/fcit --clients 3 --host HOST     several machines; then up, register, submit
  fcit client start SITE.yaml                            one of their sites
  fcit doctor                                            check this machine and the built-in model
  fcit doctor --config configs/24gb/disco.yaml           will it fit, and how long will it take

exit codes: 0 done, 1 the run failed (resumable), 2 bad input, 75 stopped on request (resumable), 130 Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """Ends with one sentence that names the way to the help, as all errors of fcit do.

    Arguments may stand before and after options: by itself argparse forgets those that may be left out (`key=value`) as
    soon as an option has come.
    """

    _mixing = False  # Python before 3.12.7 parses mixed arguments by two calls of parse_known_args

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What argparse parses, arguments and options in any order."""
        if self._mixing or self._subparsers is not None or "_ARGCOMPLETE" in os.environ:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base class, but a word that no parser knows is a mistake of the innermost command."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = self._innermost(found)
            options = [option for option in command._option_string_actions if option.startswith("--")]
            hint = nearest(unknown[0], options) if unknown[0].startswith("-") else ""
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def _innermost(self, found: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the command, or of its action, that was chosen."""
        parser: argparse.ArgumentParser = self
        while inner := [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]:
            parser = inner[0].choices[getattr(found, inner[0].dest)]
        return parser

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments and exit."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"fcit: {message}; `{self.prog} --help` explains the arguments\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fcit",
        description="Federated continual instruction tuning of multimodal language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fcit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, work, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description="\n\n".join(filter(None, (f"{text[0].upper()}{text[1:]}.", more))),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(work=work)
        return command

    for command in COMMANDS:
        command.arguments(add)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from fcit.runs.environment import quiet_libraries

    quiet_libraries()
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what a word could become
        import argcomplete

        argcomplete.autocomplete(parser)
    args = parser.parse_args(argv)
    try:
        code = int(args.work(args))
        sys.stdout.flush()
        return code
    except FCITError as error:
        print(f"fcit: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "fcit", "server", "clients"):
            raise  # a mistake in fcit, not a missing package
        need = f"this needs the package {error.name!r}, which is not installed; `make install` (or pip) brings it"
        print(f"fcit: {need}; `fcit doctor` lists what is installed", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return EXIT_OUTPUT_CLOSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _output_is_closed() -> bool:
    """Whether what reads the output has ended (``fcit list | head``); what is still to be written goes nowhere then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
    return True
