"""``fcit`` as a process that can be signalled and killed, without the seconds that importing torch takes; and ``flwr``.

Both are forked from the fork server (:mod:`tests.helpers.forkserver`).
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import forkserver, killing, lighter
from tests.helpers.forked import Forked
from tests.helpers.waiting import LONG

#: Flower's command line.
FLWR = Path(sys.executable).with_name("flwr")


def run_fcit(point: str, *arguments: str) -> int:
    """What the forked process of a command does."""
    from fcit.cli import main

    lighter.lighten()
    subprocess.run = without_importing(subprocess.run)
    if point:
        killing.arm(point)
    return main(list(arguments))


def run_flwr(*arguments: str) -> int:
    """What the forked process of a command of Flower's does."""
    from flwr.cli.app import app

    sys.argv = [str(FLWR), *arguments]
    app()
    return 0


def print_imported(*modules: str) -> int:
    """Print what a process that imports these modules has imported."""
    for module in modules:
        importlib.import_module(module)
    print("\n".join(sys.modules))
    return 0


def imported(*modules: str) -> set[str]:
    """Packages that a process has which imported these modules, and those of every command."""
    process = Process(f"{__name__}:print_imported", *modules)
    assert process.wait() == 0, process.stderr
    return {module.partition(".")[0] for module in process.stdout.split("\n")}


class Process:
    """A process of the fork server with files for its stdout and stderr; its stdin is empty.

    Args:
        target: ``module:function`` that it runs with the arguments, and whose value is its exit code.
        log: file for both streams; by default each has one of its own.
        options: of :class:`~tests.helpers.forked.Forked`.
    """

    def __init__(self, target: str, *arguments: object, log: Path | None = None, **options: Any) -> None:
        forkserver.ensure()
        self._folder = tempfile.TemporaryDirectory(prefix="fcit-command-")
        self._files = {name: log or Path(self._folder.name) / name for name in ("stdout", "stderr")}
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        opened = [os.open(os.devnull, os.O_RDONLY)]
        opened += [os.open(file, writing, 0o600) for file in self._files.values()]
        self._process = Forked(target, arguments, opened, **options)
        for descriptor in opened:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of ``subprocess``: minus the signal that killed it; None while it runs."""
        return self._process.wait(0)

    @property
    def stdout(self) -> str:
        return self._files["stdout"].read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self._files["stderr"].read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self._process.wait(LONG)
        assert code is not None, f"still running after {LONG} s\n{self.stderr}"
        return code


class Command(Process):
    """A running ``fcit`` command.

    Args:
        point: where it kills itself, see :mod:`tests.helpers.killing`; empty: nowhere.
    """

    def __init__(self, *arguments: object, point: str = "", **options: Any) -> None:
        super().__init__(f"{__name__}:run_fcit", point, *arguments, **options)


def fcit(*arguments: object, point: str = "") -> Command:
    """A command that has ended."""
    command = Command(*arguments, point=point)
    command.wait()
    return command


def without_importing(run: Callable[..., Any]) -> Callable[..., Any]:
    """``subprocess.run`` that forks for Flower's command line, whose imports take longer than what it does."""

    def either(command: Any, **options: Any) -> Any:
        environment = dict(options.get("env") or os.environ)
        program = command[0] if isinstance(command, (list, tuple)) else command
        if str(shutil.which(program, path=environment.get("PATH"))) != str(FLWR):
            return run(command, **options)
        place = {"folder": options.get("cwd"), "mask": options.get("umask", -1)}
        process = Process(f"{__name__}:run_flwr", *command[1:], environment=environment, **place)
        return subprocess.CompletedProcess(command, process.wait(), process.stdout, process.stderr)

    return either
