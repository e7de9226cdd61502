"""`fcit deploy up`: the SuperLink and its door, in the foreground; what the systemd unit runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from types import FrameType

from fcit.deploy import door
from fcit.deploy.layout import Deployment
from fcit.deploy.steps import DeployError, Steps
from fcit.errors import EXIT_OK

_START, _STOP = 120.0, 10.0  # seconds


def superlink(deployment: Deployment) -> list[str]:
    """The SuperLink's command: loopback only, TLS, nodes known by their keys, state on disk."""
    folder = deployment.path / "superlink"
    return [
        "flower-superlink",
        "--host",
        "127.0.0.1",
        "--port",
        str(deployment.superlink_port),
        "--ssl-ca-certfile",
        str(deployment.ca),
        "--ssl-certfile",
        str(deployment.certificate),
        "--ssl-keyfile",
        str(deployment.certificate_key),
        "--enable-supernode-auth",
        "--database",
        str(folder / "state.db"),
        "--log-file",
        str(folder / "superlink.log"),
        "--disable-runtime-dependency-installation",
        "--isolation",
        "subprocess",
    ]


class Child:
    """A process whose output is passed on, without the lines that only say that somebody has asked for work."""

    def __init__(self, name: str, command: list[str], deployment: Deployment) -> None:
        self.name = name
        self.last: deque[str] = deque(maxlen=3)
        self.process = subprocess.Popen(
            command,
            env=deployment.environment(deployment.path / "superlink" / "home"),
            cwd=deployment.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            umask=0o077,
        )
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        for line in self.process.stdout or ():
            if "uvicorn.access" not in line:
                self.last.append(line.strip())
                print(f"{self.name}: {line}", end="", flush=True)

    def check(self) -> None:
        """Raise DeployError if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise DeployError(f"the {self.name} ended with code {code}: {' / '.join(self.last) or 'it said nothing'}")

    def stop(self) -> None:
        """End it and what it started; by force if it does not listen, or is dead and its workers are not."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def up(deployment: Deployment, steps: Steps) -> int:
    """Start both, wait until one of them or the user ends it, end both.

    Raises:
        DeployError: nginx is missing, a port is taken, or one of the two ended by itself.
    """
    house, gate = superlink(deployment), door.command(deployment)
    for command in (house, gate):
        steps.say("$ " + shlex.join(command))
    if steps.dry:
        return EXIT_OK
    _free(deployment.bind, deployment.port)
    _free("127.0.0.1", deployment.superlink_port)
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    running: list[Child] = []
    try:
        running.append(Child("SuperLink", house, deployment))
        _wait_for(deployment, running[0], asked)
        running.append(Child("door", gate, deployment))
        steps.say(f"sites reach the door at {deployment.door}; Ctrl-C or SIGTERM ends SuperLink and door")
        while not asked.wait(0.5):
            for child in running:
                child.check()
    finally:
        # The door first: nobody knocks at a door without a house.
        for child in reversed(running):
            child.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_OK


def _free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise DeployError(
                f"cannot listen on {address}:{port} ({error.strerror}); `ss -ltnp` shows who does. "
                "Is this deployment up already?"
            ) from None


def _wait_for(deployment: Deployment, child: Child, asked: threading.Event) -> None:
    """Until the SuperLink answers, or the user has changed his mind."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        child.check()
        try:
            socket.create_connection(("127.0.0.1", deployment.superlink_port), timeout=1).close()
            return
        except OSError:
            if asked.wait(0.2):
                return
    raise DeployError(f"the SuperLink does not answer after {_START:.0f} s; see {deployment.path / 'superlink'}")
