"""`fcit deploy up`: SuperLink, SuperExec and door, kept running in the foreground; the systemd unit runs it.

The SuperLink keeps the state, on disk. The SuperExec starts the server's part of a run; Flower would start it as a
child of the SuperLink and not notice its end, after which every run that is submitted stays pending. Started here it
is started again, and a run outlives the SuperLink's own end.
"""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import shlex
import signal
import socket
import ssl
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType

from fcit.deploy import clock, database, door, pulse
from fcit.deploy.child import Child, read_output
from fcit.deploy.control import PROCESSES
from fcit.deploy.deployment import Deployment
from fcit.deploy.interrupted import go_on
from fcit.deploy.pulse import Answers, Pulse
from fcit.deploy.steps import DeployError, Steps
from fcit.deploy.watched import StateFile, Watched
from fcit.errors import EXIT_OK

_START, _TICK = 120.0, 0.5  # seconds: for the SuperLink to answer, between two looks
_SETTLED = 10.0  # seconds after the start in which an end is a mistake to be mended, not a fault to get over
#: Seconds without an answer, or for the SuperExec without looking for work, after which one is started again.
_QUIET = 120.0
_WAIT = 1.0, 60.0  # seconds before one is started again
#: Seconds after the end of a run's process at which it is looked whether it was cut off: soon, and once Flower knows of
#: a process that was killed, whose heartbeats it has to miss for a minute (flwr 1.42).
_ENDED = 3.0, 75.0
_ROTATE_AGAIN = 600.0  # seconds until logs that could not be put aside are tried again
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
        "process",
        "--superexec-auth-secret-file",
        str(secret_file(deployment)),
    ]


def superexec_command(deployment: Deployment) -> list[str]:
    """The SuperExec's command: it takes runs from the SuperLink, as whose starter its secret shows it."""
    return [
        "flower-superexec",
        "--runtime-api-address",
        f"127.0.0.1:{deployment.superlink_port}",
        "--root-certificates",
        str(deployment.ca),
        "--superexec-auth-secret-file",
        str(secret_file(deployment)),
    ]


def secret_file(deployment: Deployment) -> Path:
    """What SuperLink and SuperExec know of each other."""
    return deployment.path / "superlink" / "secret"


def _make_secret(file: Path) -> None:
    if not file.is_file():
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as opened:
            opened.write(secrets.token_bytes(32))


def _child(name: str, command: list[str], deployment: Deployment) -> Child:
    """One of the three; its output is printed."""
    printer = logging.StreamHandler(sys.stdout)
    printer.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    log = logging.getLogger(f"{__name__}.{name}")
    log.handlers[:], log.propagate = [printer], False
    log.setLevel(logging.INFO)
    home = deployment.path / "superlink" / "home"
    environment = deployment.environment(home)
    return Child(name, command, environment, deployment.path, log, _WAIT, signal.SIGTERM, dropped=_POLLS)


def up(deployment: Deployment, steps: Steps) -> int:
    """Start all three and keep them running until the user ends them.

    Raises:
        DeployError: nginx is missing or cannot read its configuration, a port is taken, or one of the three does not
            start.
    """
    commands = superlink_command(deployment), superexec_command(deployment), door.command(deployment)
    for command in commands:
        steps.say("$ " + shlex.join(command))
    if steps.dry:
        return EXIT_OK
    for problem in door.admit(deployment, steps):
        steps.say(f"not let in: {problem}")
    _check_free(deployment.bind, deployment.port)
    _check_free("127.0.0.1", deployment.superlink_port)
    door.check(deployment, steps)  # before the SuperLink, which takes seconds to start
    database.shrink(database_file(deployment), steps)
    _make_secret(secret_file(deployment))
    server = Server(deployment, steps)
    before = {number: signal.signal(number, server.request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_OK


class Server:
    """Keeps SuperLink, SuperExec and door of a deployment running."""

    def __init__(self, deployment: Deployment, steps: Steps) -> None:
        self.deployment, self.steps = deployment, steps
        bound = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(deployment.bind, deployment.bind)
        at_superlink = Answers(partial(self._shake_hands, "127.0.0.1", deployment.superlink_port))
        at_door = Answers(partial(self._shake_hands, bound, deployment.port))
        self._answers = at_superlink, at_door
        superlink = _child("SuperLink", superlink_command(deployment), deployment)
        superexec = _child("SuperExec", superexec_command(deployment), deployment)
        proxy = _child("door", door.command(deployment), deployment)
        self.superlink = Watched(superlink, Pulse(at_superlink, _QUIET), 10.0, {})
        # Killed at once with the run that it has started: one that is asked to end would say that the run has failed.
        self.superexec = Watched(superexec, Pulse(pulse.main_thread, _QUIET), 0.0, {})
        self.door = Watched(proxy, Pulse(at_door, _QUIET), 10.0, {})
        self.state = StateFile(deployment.path / PROCESSES, steps.say)
        self.stop_requested = threading.Event()
        self._resuming = threading.Lock()
        self._runs: set[int] = set()  # processes that the SuperExec has started
        self._tried: dict[str, str] = {}  # as for fcit.deploy.interrupted.go_on
        self._distrusted = ""
        self._rotating = float("-inf")  # by time.monotonic(), before which logs are left alone
        self._certificate = self._stamp()
        self._begun = time.monotonic()

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.stop_requested.set()

    def run(self) -> None:
        """Run until a signal; what ends or stands still is started again.

        Raises:
            DeployError: one of the three does not start.
        """
        with selectors.DefaultSelector() as selector:
            try:
                self.superlink.start_if_due(selector)
                self._wait_for_superlink(selector)
                if not self.stop_requested.is_set():
                    self._begin(selector)
                while not self.stop_requested.is_set():
                    read_output(selector, _TICK)
                    self._look_after(selector)
                    self._take_a_new_certificate(selector)
                    self._rotate()
                    self.state.write((self.superlink, self.superexec, self.door))
            finally:
                self._end(selector)

    def _begin(self, selector: selectors.BaseSelector) -> None:
        for one in (self.superexec, self.door):
            one.start_if_due(selector)
        self._begun = time.monotonic()
        place = self.deployment.door
        self.steps.say(f"sites reach the door at {place}; Ctrl-C or SIGTERM ends SuperLink, SuperExec and door")
        self._go_on()

    def _look_after(self, selector: selectors.BaseSelector) -> None:
        for one in (self.superlink, self.superexec, self.door):
            fault = one.look(selector)
            if fault is None:
                continue
            if time.monotonic() - self._begun < _SETTLED and one.starts == 1 and one.code > 0:
                raise DeployError(f"the {one.child.name} {fault}: {_last(one.child)}")
            self.steps.say(f"the {one.child.name} {fault}; started again in {one.pause:.0f} s")
        for one in (self.superlink, self.superexec, self.door):
            pid = one.start_if_due(selector)
            if pid is not None:
                self.steps.say(f"the {one.child.name} runs as process {pid}")
                if one is self.superexec:
                    self._go_on()
        self._look_at_runs()

    def _look_at_runs(self) -> None:
        """Look whether a run is to be resumed whose process has ended, and the SuperExec has not.

        It was killed, or the SuperLink has ended the run because it was away, or its clock ahead, for more than the
        minute in which Flower expects a heartbeat; the process then ends at its next call.
        """
        process = self.superexec.child.process
        before, self._runs = self._runs, set() if process is None else set(pulse.children(process.pid))
        if process is not None and before - self._runs:
            threading.Thread(target=self._resume_ended, daemon=True).start()

    def _resume_ended(self) -> None:
        for pause in _ENDED:
            while not self.stop_requested.wait(pause):
                with self._resuming:
                    if go_on(self.deployment, self.steps, self._tried):
                        break

    def _go_on(self) -> None:
        """Resume the run that the end of the SuperExec has ended; it takes seconds, which nothing here waits for."""
        threading.Thread(target=self._resume, daemon=True).start()

    def _resume(self) -> None:
        with self._resuming:  # one after the other: the second sees what the first has begun
            go_on(self.deployment, self.steps)

    def _take_a_new_certificate(self, selector: selectors.BaseSelector) -> None:
        """After `fcit deploy renew`: the door reads it while it runs, the SuperLink when it starts."""
        stamp = self._stamp()
        if stamp == self._certificate or self.door.child.process is None:
            return
        self._certificate = stamp
        self.steps.say("a new certificate: the door reads it, the SuperLink starts anew; sites and runs go on")
        self.door.child.process.send_signal(signal.SIGHUP)
        self.superlink.stop(selector)

    def _rotate(self) -> None:
        """Put logs aside that have grown; while that fails, as on a full disk, they stay as they are."""
        if time.monotonic() < self._rotating:
            return
        try:
            door.rotate(self.deployment)
        except OSError as error:
            self._rotating = time.monotonic() + _ROTATE_AGAIN
            self.steps.say(f"the door's logs are not put aside: {error}; tried again in {_ROTATE_AGAIN:.0f} s")

    def _stamp(self) -> int:
        return self.deployment.certificate.stat().st_mtime_ns

    def _shake_hands(self, address: str, port: int) -> None:
        """Whoever listens there answers with this deployment's certificate."""
        try:
            with clock.connection(address, port, self.deployment.ca, "localhost"):
                pass
        except ssl.SSLCertVerificationError as error:  # it answers; what it shows is out of date, or the clock wrong
            if self._distrusted != str(error):
                self._distrusted = str(error)
                self.steps.say(f"{address}:{port}: {error}; `fcit deploy renew {self.deployment.path}` makes a new one")

    def _end(self, selector: selectors.BaseSelector) -> None:
        process = self.superexec.child.process
        if process is not None and pulse.children(process.pid):
            self.steps.say(
                f"a run was going on and is interrupted; the next `fcit deploy up {self.deployment.path}` resumes it "
                "from its last checkpoint"
            )
        for answers in self._answers:
            answers.close()
        # The door first, so that it passes no request on to a SuperLink that has ended.
        for one in (self.door, self.superexec, self.superlink):
            one.stop(selector)
        self.state.remove()

    def _wait_for_superlink(self, selector: selectors.BaseSelector) -> None:
        """Until the SuperLink answers, or the user ends it.

        Raises:
            DeployError: it ends, or does not answer.
        """
        deadline, child = time.monotonic() + _START, self.superlink.child
        while time.monotonic() < deadline and not self.stop_requested.is_set():
            read_output(selector, 0.2)
            fault = self.superlink.look(selector)
            if fault is not None:
                raise DeployError(f"the SuperLink {fault}: {_last(child)}")
            try:
                socket.create_connection(("127.0.0.1", self.deployment.superlink_port), timeout=1).close()
                return
            except OSError:
                continue
        if not self.stop_requested.is_set():
            where = self.deployment.path / "superlink"
            raise DeployError(f"the SuperLink does not answer after {_START:.0f} s; see {where}")


def _last(child: Child) -> str:
    return " / ".join(list(child.tail)[-_TAIL:]) or "it printed nothing"


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
