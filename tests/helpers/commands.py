"""``fcit`` as a process that can be signalled and killed, without the seconds that importing torch takes; and ``flwr``.

One server process for each test session has imported everything and done nothing; every command is forked from it, so
it begins as a new process does: without caches, models or threads of the tests.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers import killing, lighter
from tests.helpers.waiting import LONG

_PRELOADED = [
    "tests.helpers.uncollected",
    *("fcit.cli.main", "server.app", "clients.app", "fcit.models.adapters", "fcit.report.page", "flwr.cli.app"),
    __name__,
]
#: Flower's command line.
FLWR = Path(sys.executable).with_name("flwr")


def _begin(folder: str, environment: dict[str, str]) -> None:
    """What a forked process begins with: streams into files, the caller's environment, the collector of cycles."""
    gc.freeze()  # what was imported stays
    gc.enable()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, stream)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)


def _run(arguments: list[str], point: str, folder: str, environment: dict[str, str]) -> None:
    """What the forked process of a command does."""
    _begin(folder, environment)
    # A job in the background inherits an ignored SIGINT; a terminal's does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from fcit.cli import main

    lighter.lighten()
    if point:
        killing.arm(point)
    sys.exit(main(arguments))


def _flwr(arguments: list[str], folder: str, environment: dict[str, str], cwd: Path, mask: int) -> None:
    """What the forked process of a command of Flower's does."""
    _begin(folder, environment)
    os.chdir(cwd)
    if mask >= 0:
        os.umask(mask)
    sys.argv = [str(FLWR), *arguments]
    from flwr.cli.app import app

    app()


def _server() -> ForkServerContext:
    """What starts processes that have imported everything and done nothing."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower reads it when it is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _import(modules: tuple[str, ...], file: Path) -> None:
    for module in modules:
        importlib.import_module(module)
    file.write_text("\n".join(sys.modules), encoding="utf-8")


def imported(*modules: str) -> set[str]:
    """Packages that a process has which imported these modules, and those of every command."""
    with tempfile.TemporaryDirectory(prefix="fcit-imports-") as folder:
        file = Path(folder) / "modules"
        process = _server().Process(target=_import, args=(modules, file))
        process.start()
        process.join(LONG)
        return {module.partition(".")[0] for module in file.read_text(encoding="utf-8").split("\n")}


class Command:
    """A running ``fcit`` command.

    Args:
        point: where it kills itself, see :mod:`tests.helpers.killing`; empty: nowhere.
    """

    def __init__(self, *arguments: object, point: str = "", environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fcit-command-")
        values = [str(argument) for argument in arguments]
        self.process: BaseProcess = _server().Process(
            target=_run, args=(values, point, self._folder.name, dict(environment or os.environ))
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """As of ``subprocess``: minus the signal that killed it; None while it runs."""
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    def _read(self, name: str) -> str:
        file = Path(self._folder.name) / name
        return file.read_text(errors="replace") if file.is_file() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        self.process.join(LONG)
        assert self.process.exitcode is not None, f"still running after {LONG} s\n{self.stderr}"
        return self.process.exitcode


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
        with tempfile.TemporaryDirectory(prefix="fcit-flwr-") as folder:
            place = options.get("cwd") or Path.cwd(), options.get("umask", -1)
            arguments = [str(word) for word in command[1:]]
            process = _server().Process(target=_flwr, args=(arguments, folder, environment, *place))
            process.start()
            process.join(LONG)
            streams = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        assert process.exitcode is not None, f"{command} is still running after {LONG} s"
        return subprocess.CompletedProcess(command, process.exitcode, *streams)

    return either
