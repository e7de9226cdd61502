"""The fork server: processes that have imported everything and done nothing.

Importing torch, Flower and the rest takes seconds. One process of a test session does so; pytest-xdist's processes and
the commands that tests run are forked from it. So each begins as a new process does: without caches, models or threads
of the tests. Pytest-xdist's are forked by a second one (:func:`collect`), a fork of the first that has imported the
tests, too.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers.forked import ADDRESS, Forked

ROOT = Path(__file__).parents[2]
#: What every command imports sooner or later.
COMMANDS = (
    *("fcit.cli.main", "server.app", "clients.app", "fcit.models.adapters", "fcit.report.page", "flwr.cli.app"),
    "tests.helpers.commands",
)
_LARGEST = 2**18  # bytes of a request
_PR_SET_PDEATHSIG = 1


def ensure(*modules: str) -> None:
    """Start the server, which ends with this process, unless :data:`ADDRESS` says that there is one.

    Args:
        modules: what it imports besides :data:`COMMANDS`.
    """
    if ADDRESS in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="fcit-forkserver-")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        code = "import gc; gc.disable(); from tests.helpers.forkserver import serve; serve({}, {})"
        server = subprocess.Popen(
            [sys.executable, "-c", code.format(listener.fileno(), (*COMMANDS, *modules))],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            env={"FLWR_TELEMETRY_ENABLED": "0", **os.environ},  # Flower reads it when it is imported
            pass_fds=[listener.fileno()],
        )
    os.environ[ADDRESS] = f"{folder}/socket"

    def end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    atexit.register(end)


def with_tests(arguments: list[str]) -> tuple[str, Forked]:
    """Start the second server; returns the address of its socket, and the process, which ends with this object.

    Args:
        arguments: of pytest, by which it finds the tests.
    """
    address = f"{os.environ[ADDRESS]}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, Path(os.devnull).open("w") as nowhere:
        listener.bind(address)
        listener.listen()
        streams = listener.fileno(), nowhere.fileno(), 2
        return address, Forked(f"{__name__}:collect", arguments, streams)


def collect(*arguments: str) -> int:
    """Import the tests as pytest does to collect them, then fork for each request; stdin is the socket that listens."""
    import pytest

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # with the first server
    pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *arguments])
    serve(0, (), ())
    return 0


def serve(listening: int, modules: tuple[str, ...], ending: tuple[int, ...] = (0,)) -> None:
    """Import the modules, then fork a process for each request until stdin ends.

    Args:
        listening: descriptor of the socket that listens.
        ending: descriptors at whose end it ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the processes
    for module in modules:  # garbage is not looked for meanwhile, which would take a tenth of the time
        importlib.import_module(module)
    gc.freeze()
    running: dict[int, tuple[int, socket.socket]] = {}  # process and whoever wants it, by the process' descriptor
    with socket.socket(fileno=listening) as listener:
        while True:
            links = [link for _, link in running.values()]
            ready = select.select([*ending, listener, *running, *links], [], [])[0]
            if set(ending) & set(ready):
                return
            for descriptor in running.keys() & set(ready):
                pid, link = running.pop(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with link, suppress(BrokenPipeError):  # whoever wanted it may have ended
                    link.send(b"%d" % code)
            for pid, link in running.values():
                if link in ready:  # at its end
                    os.kill(pid, signal.SIGKILL)
            if listener in ready:
                link, _ = listener.accept()
                request, streams, _, _ = socket.recv_fds(link, _LARGEST, 3)
                pid = os.fork()
                if pid == 0:
                    for opened in (listener, link, *(other for _, other in running.values())):
                        opened.close()
                    sys.exit(_begin(json.loads(request), streams))
                for stream in streams:
                    os.close(stream)
                link.send(b"%d" % pid)
                running[os.pidfd_open(pid)] = pid, link


def _begin(request: dict[str, Any], streams: list[int]) -> int:
    """What the forked process does; returns its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["mask"] >= 0:
        os.umask(request["mask"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["__main__"] = ModuleType("__main__")
    gc.enable()
    module, _, name = request["target"].partition(":")
    return int(getattr(importlib.import_module(module), name)(*request["arguments"]))


def execute(code: str, *arguments: str) -> int:
    """Execute code as ``python -c`` does."""
    sys.argv = ["-c", *arguments]
    exec(code, vars(sys.modules["__main__"]))
    return 0
