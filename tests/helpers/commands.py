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
    code, out, err = _done("print_imported", *modules)
    assert code == 0, err
    return {module.partition(".")[0] for module in out.split("\n")}


class _Files:
    """Streams of a process: an empty stdin; stdout and stderr go into files."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fcit-command-")

    def begin(self, target: str, *arguments: object, **options: Any) -> Forked:
        """Have the fork server start one of the functions above with these streams."""
        forkserver.ensure()
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = [os.open(os.devnull, os.O_RDONLY)]
        opened += [os.open(Path(self._folder.name) / name, writing, 0o600) for name in ("stdout", "stderr")]
        process = Forked(f"{__name__}:{target}", arguments, opened, **options)
        for descriptor in opened:
            os.close(descriptor)
        return process

    def read(self, name: str) -> str:
        """All that is in ``stdout`` or ``stderr`` by now."""
        return (Path(self._folder.name) / name).read_text(encoding="utf-8", errors="replace")


def _done(target: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that has ended."""
    files = _Files()
    code = files.begin(target, *arguments, **options).wait(LONG)
    assert code is not None, f"{target} {arguments} is still running after {LONG} s\n{files.read('stderr')}"
    return code, files.read("stdout"), files.read("stderr")


class Command:
    """A running ``fcit`` command.

    Args:
        point: where it kills itself, see :mod:`tests.helpers.killing`; empty: nowhere.
    """

    def __init__(self, *arguments: object, point: str = "") -> None:
        self._files = _Files()
        self._process = self._files.begin("run_fcit", point, *arguments)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of ``subprocess``: minus the signal that killed it; None while it runs."""
        return self._process.wait(0)

    @property
    def stdout(self) -> str:
        return self._files.read("stdout")

    @property
    def stderr(self) -> str:
        return self._files.read("stderr")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self._process.wait(LONG)
        assert code is not None, f"still running after {LONG} s\n{self.stderr}"
        return code


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
        return subprocess.CompletedProcess(command, *_done("run_flwr", *command[1:], environment=environment, **place))

    return either
