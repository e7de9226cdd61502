"""`fcit client start SITE.yaml`: Flower's SuperNode and our executor, kept running until told to end.

Only the SuperNode talks to the outside, and only outwards, to the operator's door. The two talk to each other
on loopback, with a secret that is made at the first start.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clients.site import logs, signoff
from clients.site.at_hand import AtHand
from fcit.config import site as sites
from fcit.config.site import Site
from fcit.deploy import clock, pulse
from fcit.deploy.child import Child, read_output
from fcit.deploy.pulse import Pulse
from fcit.deploy.watched import StateFile, Watched
from fcit.errors import EXIT_OK, ConfigError, DiskFull
from fcit.runs.environment import flower_environment

#: Seconds before a second start and, doubled each time, before later ones, at most the second number. That of a
#: SuperNode is short: it is refused as long as its clock is wrong or its key not registered, and is back soon after.
_SUPERNODE_WAIT = 1.0, 15.0
_EXECUTOR_WAIT = 1.0, 60.0
_SAY_AGAIN = 60.0  # seconds until the same explanation is logged again
#: Seconds without a sign of life. A SuperNode's main thread wakes every 20 s, or 30 s after it has begun to connect;
#: an executor looks for orders every second, and says every 25 s that it is doing one.
_QUIET_SUPERNODE, _QUIET_EXECUTOR = 45.0, 120.0
_TICK = 0.5

#: Below the site's folder: what runs, for `fcit client status`.
STATE = "status.json"
#: And under which number the SuperLink has let the SuperNode in.
NODE = "node.json"

#: What a SuperNode prints repeatedly while it cannot reach the operator's door.
_UNREACHABLE = "Connection attempt failed"
#: What a SuperNode says of an order whose run ended while the order was coming in (flwr 1.41 and 1.42). It keeps the
#: task without its parts, and later the error reply to it: it sends one reply for each order that comes, so every
#: reply would be one order late from then on.
HALF_RECEIVED = "status. Ignoring message"
#: What Python prints when a thread has ended by an error. Of a SuperNode it is the one that sends heartbeats, at any
#: HTTP 500; the main thread still asks for orders, but the server takes the site for offline from then on.
_DEADLY = {"Exception in thread": "has lost the thread that tells the server that this site is there"}
#: Meaning of a SuperNode's last lines of output, by a piece of text in them.
_REASONS = {
    _UNREACHABLE: "the operator's door (`superlink`) does not answer; it keeps trying. `fcit client check` says how "
    "far it gets",
    "code: 2004": "the operator's SuperLink did not let this site in: its public key is not registered (`fcit deploy "
    "register`), or another site with this key is online, or was within the last minute",
    "code: 2001": "the operator's SuperLink wants registered keys and does not know this one; send the operator the "
    "public key (`fcit client check` prints its fingerprint)",
    "CERTIFICATE_VERIFY_FAILED": "the door's certificate is not from the authority in `ca`, has run out or is for "
    "another name; `fcit client check` says which",
    "address already in use": "the port of SITE.yaml is taken on loopback; choose another `port`",
    "not by this site's SuperNode": "another user of this machine has taken the port of SITE.yaml; no order is "
    "done until it is free; choose another `port`",
    "Unable to parse the private key": "`key` is not an unencrypted OpenSSH private key of kind ecdsa",
}


def reason(lines: list[str]) -> str | None:
    """The cause of a fault, from a child's last lines of output; None if they do not name one."""
    for line in reversed(lines):
        for piece, meaning in _REASONS.items():
            if piece in line:
                return meaning
    return None


def prepare(site: Site) -> None:
    """Make the site's folders and its loopback secret, readable by this user only.

    Raises:
        ConfigError: key or certificate of the authority is missing.
    """
    missing = [
        f"{name}: no such file {value}"
        for name, value in (("ca", site.ca), ("key", site.key))
        if not Path(value).is_file()
    ]
    if missing:
        raise ConfigError([f"{m}; the operator's `fcit deploy init` writes it" for m in missing], "SITE.yaml")
    for folder in (site.folder, site.folder / "logs", site.folder / "flwr"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = site.folder / "secret"
    if not secret.is_file() or secret.stat().st_size < 32:
        handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
    secret.chmod(0o600)


def environment(site: Site) -> dict[str, str]:
    """The children's environment: nothing is fetched, nothing reported, the site's own folders."""
    home = site.folder
    env = {
        **flower_environment(home / "flwr", loopback=site.address),
        "HF_HUB_OFFLINE": "1",  # models are read from this machine's folders only
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    env.setdefault("FCIT_CACHE", str(home / "cache"))
    if site.piece is not None:
        env["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"] = str(site.piece)
    if site.threads is not None:
        env |= {"OMP_NUM_THREADS": str(site.threads), "MKL_NUM_THREADS": str(site.threads)}
    return env


def supernode_command(site: Site) -> list[str]:
    """Flower's own SuperNode, with nothing of ours to start tasks by itself; the one before it is signed off first."""
    return [
        *(sys.executable, "-P", "-m", "clients.site.signoff"),
        *(site.superlink, site.ca, site.key, str(site.folder / NODE)),
        str(Path(sys.executable).with_name("flower-supernode")),
        "--superlink",
        site.superlink,
        "--root-certificates",
        site.ca,
        "--auth-supernode-private-key",
        site.key,
        "--isolation",
        "process",
        "--superexec-auth-secret-file",
        str(site.folder / "secret"),
        "--host",
        site.address,
        "--port",
        str(site.port),
    ]


def executor_command(path: Path) -> list[str]:
    """Our executor; ``-P`` keeps a folder called ``clients`` in the working directory out."""
    return [sys.executable, "-P", "-m", "clients.site.executor", str(path)]


class Supervisor:
    """Keeps a site's two processes running.

    Args:
        path: the SITE.yaml, absolute.
    """

    def __init__(self, path: Path, site: Site) -> None:
        self.site, folder, env = site, site.folder, environment(site)
        self.log = logs.to_file("clients.site.supervisor", folder / "logs" / "start.log", console=True)
        output = logs.to_file("clients.supernode", folder / "logs" / "supernode.log")
        supernode = Child("SuperNode", supernode_command(site), env, folder, output, _SUPERNODE_WAIT, signal.SIGTERM)
        self.supernode = Watched(
            supernode, Pulse(pulse.of_supernode(site.port), _QUIET_SUPERNODE), 20.0, _DEADLY, talks=True
        )
        output = logs.to_file("clients.site.executor", folder / "logs" / "executor.log")
        # Killed at once: it has no connection to sign off from and may be in a long training step.
        executor = Child("executor", executor_command(path), env, folder, output, _EXECUTOR_WAIT, signal.SIGKILL)
        self.executor = Watched(executor, Pulse(pulse.whole, _QUIET_EXECUTOR), 3.0, {})
        self.clock = clock.Watch(lambda: clock.ahead(site.superlink, site.ca))
        self.state = StateFile(folder / STATE, self.log.warning)
        self.order = AtHand(folder, self.log.warning)
        self.stopping = False
        self._node = signoff.remembered(folder / NODE)
        self._explained: dict[str, float] = {}

    def run(self) -> None:
        """Run until a signal; a child that ends or stands still is started again."""
        self.order.end()  # of a supervisor that was killed, and its children with it
        with selectors.DefaultSelector() as selector:
            try:
                while not self.stopping:
                    self._look_after(selector)
                    self._look_at_the_clock()
                    self.state.write((self.supernode, self.executor), ahead=self.clock.ahead)
                    read_output(selector, _TICK)
            finally:
                self._stop(selector)
                self.order.end()
                self.state.remove()

    def _look_after(self, selector: selectors.BaseSelector) -> None:
        ended = [one for one in (self.supernode, self.executor) if self._has_ended(one, selector)]
        half = any(HALF_RECEIVED in line for line in self.supernode.child.tail)
        if half:
            self.log.warning("the run of an order ended while the order was coming in; both processes begin anew")
        lost = bool(ended and self.order)
        if lost:
            # Else the other one would go on for up to a minute with an order that the first knows nothing of.
            self.log.warning("the order at hand is lost; both processes begin anew, and the server hears of it at once")
        if half or lost:
            self._stop(selector)
            self.supernode.child.tail.clear()
            self.order.end()
        self._remember_node()
        for one in (self.supernode, self.executor):
            pid = one.start_if_due(selector)
            if pid is not None:
                self.log.info("the %s runs as process %d", one.child.name, pid)

    def _has_ended(self, one: Watched, selector: selectors.BaseSelector) -> bool:
        """Whether a child has ended, or was ended because it stood still; the log says why."""
        fault, child = one.look(selector), one.child
        if fault is not None:
            self.log.warning("the %s %s; started again in %.0f s", child.name, fault, one.pause)
            self._explain(child)
        elif child.tail and _UNREACHABLE in child.tail[-1]:
            self._explain(child)
        return fault is not None

    def _remember_node(self) -> None:
        """Keep under which number the SuperNode was let in: if it is killed, its successor signs it off."""
        node = signoff.admitted(self.supernode.child.tail)
        if node is not None and node != self._node:
            self._node = node
            try:
                signoff.remember(self.site.folder / NODE, node)
            except (OSError, DiskFull) as error:
                self._warn("SuperNode", f"its number is not written down ({error}); killed, it is back in a minute")

    def _look_at_the_clock(self) -> None:
        self.clock.look(urgent=self.supernode.child.process is None)
        ahead = self.clock.ahead
        wrong = None if ahead is None else clock.problem(ahead)
        if wrong is not None:
            self._warn("clock", wrong)

    def _explain(self, child: Child) -> None:
        meaning = reason(list(child.tail))
        self._warn(child.name, f"see {self.site.folder / 'logs'}" if meaning is None else meaning)

    def _warn(self, what: str, text: str) -> None:
        """Log a sentence, the same one once a minute at most."""
        now = time.monotonic()
        if now - self._explained.get(text, -_SAY_AGAIN) >= _SAY_AGAIN:
            self._explained[text] = now
            self.log.warning("%s: %s", what, text)

    def _stop(self, selector: selectors.BaseSelector) -> None:
        # The executor first: its order is given up, then the SuperNode signs off.
        for one in (self.executor, self.supernode):
            if not one.stop(selector):
                self.log.warning("the %s did not end when asked and was killed", one.child.name)

    def request_stop(self, number: int, frame: Any) -> None:
        """Signal handler."""
        self.stopping = True


def start(path: str | os.PathLike[str]) -> int:
    """Run a site until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        ConfigError: SITE.yaml is wrong, its files are missing, or the site runs already.
    """
    file = Path(path).resolve()
    site = sites.load(file)
    mask = os.umask(0o077)
    prepare(site)
    lock = FileLock(site.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"home: a site runs already in {site.home}; stop it first", str(file)) from None
    supervisor = Supervisor(file, site)
    handlers = {n: signal.signal(n, supervisor.request_stop) for n in (signal.SIGTERM, signal.SIGINT)}
    log = supervisor.log
    log.info("site %s -> %s; logs in %s", site.name, site.superlink, site.folder / "logs")
    if not site.apps:
        log.warning("apps: none is pinned in %s, every order will be refused", file)
    try:
        supervisor.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        lock.release()
        os.umask(mask)
        log.info("stopped")
    return EXIT_OK
