"""A process of the fork server, see :mod:`tests.helpers.forkserver`, as whoever wants it sees it.

Imports nothing but the standard library. As a script it stands where pytest-xdist or a bench wants an interpreter:
``forked.py -c CODE`` or ``-m fcit.cli`` is carried out by a process of the fork server that has this one's streams.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Environment variable that holds the path of the fork server's socket.
ADDRESS = "FCIT_TEST_FORKSERVER"


class Forked:
    """A process that the fork server of :data:`ADDRESS` forks; it is killed with the one that wanted it.

    Args:
        target: ``module:function`` that it runs with the arguments, and whose value is its exit code.
        streams: file descriptors that it has as stdin, stdout and stderr.
        environment: its environment variables.
        folder: where it works.
        mask: of the files that it makes.
        server: address of another fork server.

    Raises:
        ConnectionError: the fork server has ended; its stderr says why.
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[object],
        streams: tuple[int, int, int] = (0, 1, 2),
        environment: Mapping[str, str] = os.environ,
        folder: Path | str | None = None,
        mask: int = -1,
        server: str | None = None,
    ) -> None:
        request = {
            "target": target,
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "mask": mask,
        }
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.connect(server or os.environ[ADDRESS])
        socket.send_fds(self._link, [json.dumps(request).encode()], streams)
        self._code: int | None = None
        self.pid = self._receive()

    def _receive(self) -> int:
        if not (number := self._link.recv(32)):
            raise ConnectionError("the fork server has ended")
        return int(number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, minus the signal that killed it; None if it still runs after ``timeout`` seconds."""
        if self._code is None and select.select([self._link], [], [], timeout)[0]:
            self._code = self._receive()
            self._link.close()
        return self._code


def main(arguments: list[str]) -> int:
    """Have done what ``python`` does with these arguments: ``-c CODE`` or ``-m fcit.cli COMMAND ...``.

    Code may have ``--server=ADDRESS`` before it.

    Returns:
        the exit code; of a process that a signal has killed that of a shell.
    """
    # Ctrl-C ends the process of the server, and with it this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if "-m" in arguments:
        process = Forked("tests.helpers.commands:run_fcit", ["", *arguments[arguments.index("-m") + 2 :]])
    else:
        server = next((word.partition("=")[2] for word in arguments if word.startswith("--server=")), None)
        process = Forked("tests.helpers.forkserver:execute", [arguments[-1]], server=server)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(process.pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    code = process.wait()
    assert code is not None
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
