"""`fcit deploy up`: the SuperLink and the proxy before it, in the foreground; the systemd unit runs it."""

from __future__ import annotations

import logging
import selectors
import shlex
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from fcit.deploy import database, door
from fcit.deploy.child import Child, read_output
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import DeployError, Steps
from fcit.errors import EXIT_OK

_START, _STOP, _TICK = 120.0, 10.0, 0.5  # seconds: for the SuperLink to answer, for each to end, between two looks
_POLLS = "uvicorn.access"  # in lines of the SuperLink that only say that a site has asked for work
_TAIL = 3  # last lines of a process that an error quotes


def database_file(deployment: Deployment) -> Path:
    """Where the SuperLink keeps nodes, runs and what is on its way."""
    return deployment.path / "superlink" / "state.db"


def superlink_command(deployment: Deployment) -> list[str]:
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
        str(database_file(deployment)),
        "--log-file",
        str(folder / "superlink.log"),
        "--disable-runtime-dependency-installation",
        "--isolation",
        "subprocess",
    ]


def _child(name: str, command: list[str], deployment: Deployment) -> Child:
    """One of the two; its output is printed. It is not started again: the systemd unit starts both."""
    printer = logging.StreamHandler(sys.stdout)
    printer.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    log = logging.getLogger(f"{__name__}.{name}")
    log.handlers[:], log.propagate = [printer], False
    log.setLevel(logging.INFO)
    home = deployment.path / "superlink" / "home"
    return Child(
        name, command, deployment.environment(home), deployment.path, log, (0.0, 0.0), signal.SIGTERM, dropped=_POLLS
    )


def up(deployment: Deployment, steps: Steps) -> int:
    """Start both, wait until one of them or the user ends it, end both.

    Raises:
        DeployError: nginx is missing, a port is taken, or one of the two ended by itself.
    """
    superlink, proxy = superlink_command(deployment), door.command(deployment)
    for command in (superlink, proxy):
        steps.say("$ " + shlex.join(command))
    if steps.dry:
        return EXIT_OK
    for problem in door.admit(deployment, steps):
        steps.say(f"not let in: {problem}")
    _check_free(deployment.bind, deployment.port)
    _check_free("127.0.0.1", deployment.superlink_port)
    database.shrink(database_file(deployment), steps)
    stop_requested = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop_requested.set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    running: list[Child] = []
    with selectors.DefaultSelector() as selector:
        try:
            running.append(_child("SuperLink", superlink, deployment))
            running[0].start(selector)
            _wait_for_superlink(deployment, running[0], selector, stop_requested)
            running.append(_child("door", proxy, deployment))
            running[1].start(selector)
            steps.say(f"sites reach the door at {deployment.door}; Ctrl-C or SIGTERM ends SuperLink and door")
            while not stop_requested.is_set():
                read_output(selector, _TICK)
                for child in running:
                    _check_runs(child, selector)
                door.rotate(deployment)
        finally:
            # The proxy first, so that it passes no request on to a SuperLink that has ended.
            for child in reversed(running):
                child.stop(selector, _STOP)
            for number, handler in before.items():
                signal.signal(number, handler)
    return EXIT_OK


def _check_free(address: str, port: int) -> None:
    """Raise DeployError if this port cannot be listened on."""
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


def _check_runs(child: Child, selector: selectors.BaseSelector) -> None:
    """Raise DeployError if a process has ended."""
    code = child.ended(selector)
    if code is not None:
        last = " / ".join(list(child.tail)[-_TAIL:]) or "it printed nothing"
        raise DeployError(f"the {child.name} ended with code {code}: {last}")


def _wait_for_superlink(
    deployment: Deployment, child: Child, selector: selectors.BaseSelector, stop_requested: threading.Event
) -> None:
    """Until the SuperLink answers, or the user ends it."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and not stop_requested.is_set():
        read_output(selector, 0.2)
        _check_runs(child, selector)
        try:
            socket.create_connection(("127.0.0.1", deployment.superlink_port), timeout=1).close()
            return
        except OSError:
            continue
    if not stop_requested.is_set():
        raise DeployError(f"the SuperLink does not answer after {_START:.0f} s; see {deployment.path / 'superlink'}")
