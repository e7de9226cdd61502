"""Does a site's orders; stands where Flower has ``flower-superexec`` and ``flwr-clientapp``.

Differences: only apps pinned in SITE.yaml are served, checked before anything of them is unpacked; the code that
runs is always the installed ``clients.app``, never a file from the wire; of an error only a code and a reference
to the site's log are sent; and one process can do order after order.

With `clients/site/signoff.py` this is where Flower's private parts are touched on the client's side (flwr 1.41 and
1.42); a test says which.
``python -m clients.site.executor SITE.yaml`` is started by `fcit client start`.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from clients.site import logs
from clients.site.at_hand import AtHand
from clients.site.listener import OwnSuperNode
from fcit.config import site as sites
from fcit.deploy.child import with_parent
from fcit.errors import FCITError, Refused
from fcit.io import collector
from fcit.registry import resolve_path

#: The app that does the orders, by Flower's name for it (pyproject.toml names it, too).
APP = "clients.app:app"
#: Both kinds of tasks that a SuperNode makes of a message; one that is never taken would block the site for ever.
_TASKS = (TaskType.CLIENT_APP, TaskType.AGENT_APP)
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
#: Seconds between two looks for an order, at least and at most; between the two a tenth of the time without one, by
#: which an order waits for no longer. A look costs this process and the SuperNode some 10 ms of processor time.
_SOON, _LATE, _SHARE = 0.1, 1.0, 0.1
_AGAIN = 60.0  # seconds until the same warning is logged again
EXIT_UNSENT = 1  # the reply to an order could not be sent
EXIT_ABANDONED = 3  # the order at hand is lost, or the SuperNode does not know it any more

log = logging.getLogger("clients")


def connect(address: str, *interceptors: Any) -> RuntimeHttpClient:
    """A client of the SuperNode's Runtime API on loopback; repeats calls for half a minute at most.

    Its calls raise ``Refused`` if another user's process listens there. Flower's own retries are not used: at a token
    that is not known any more they kill the process.
    """
    patience = RetryInvoker(lambda: exponential(max_delay=4), httpx.TransportError, max_tries=8, max_time=30)
    return RuntimeHttpClient.from_server_address(
        address,
        True,
        None,
        [OwnSuperNode(address), RuntimeVersionHttpInterceptor("flwr-clientapp"), *interceptors],
        retry_invoker=patience,
    )


def check_pinned(apps: list[str], run: Run, fab: Fab) -> None:
    """Refuse an app that is not pinned, by the hash of its very bytes.

    Raises:
        Refused: not pinned, or the bytes do not have the hash that the run declares.
    """
    actual = hashlib.sha256(fab.content).hexdigest()
    if actual != run.fab_hash:
        raise Refused(f"the received app has hash {actual}, the run declares {run.fab_hash!r}")
    if actual not in apps:
        pinned = ", ".join(apps) or "none"
        raise Refused(f"app {actual} is not pinned in SITE.yaml (apps: {pinned}); add it there if you trust it")


def reply_to(path: Path, message: Message, context: Context, run: Run, fab: Fab) -> Message:
    """The reply to an order: that of ``clients.app``, or an error with a code and a reference.

    ``clients.app`` handles its own errors; this handles those before it and those that escape it.
    """
    from clients.site import gate

    def failed(error: Exception) -> Message:
        def fail(_: gate.Gate) -> NoReturn:
            raise error

        return gate.reply(context, message, fail)

    try:
        # Read for every order: a change of SITE.yaml counts at once.
        check_pinned(sites.load(path).apps, run, fab)
        return resolve_path(APP)(message, context)
    except Exception as error:  # noqa: BLE001  (any error goes to the site's log and trail; a code is sent)
        return failed(error)


def perform(path: Path, address: str, token: str, arrival: float) -> None:
    """Do the one order that ``token`` stands for and send its reply; it must come whole within ``arrival`` seconds."""
    client = connect(address, RuntimeTokenHttpInterceptor(token))
    heart = HeartbeatSender(lambda: _beat(client))
    heart.start()
    try:
        with _given_up_after(arrival):
            message, given, run, fab = pull_task_input(client)
        log.info("run %s: %s", run.run_id, message.metadata.message_type)
        # The code here gets nothing that the app or the operator configured, only the site's own file.
        context = Context(run.run_id, given.node_id, {"site": str(path)}, RecordDict(), {}, given.series_id)
        reply = reply_to(path, message, context, run, fab)
        status = SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED
        push_message(client, reply, context)
        push_task_output(client, None, status, "")
    finally:
        if heart.is_running:
            heart.stop()
        client.close()


def attempt(path: Path, address: str, token: str, arrival: float) -> bool:
    """:func:`perform`; an error around the order itself, in receiving it or in sending the reply, is logged."""
    try:
        perform(path, address, token, arrival)
    except Exception:
        log.exception("the reply to an order could not be sent; the server hears of it within a minute")
        return False
    return True


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Give an order up whose parts have not all come by then.

    A SuperNode whose run ended while it was receiving an order keeps a task without them; Flower's own wait for parts
    lasts more than an hour, and all other orders would wait behind it.
    """

    def give_up() -> None:
        log.warning("an order did not come whole within %.0f s (SITE.yaml arrival_timeout); it is given up", seconds)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _beat(client: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that the order is being done; if it does not know it any more, give it up."""
    try:
        if client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
            return True
    except httpx.TransportError:
        return False
    except httpx.HTTPStatusError as error:
        log.warning("the SuperNode does not know this order any more (HTTP %s)", error.response.status_code)
    except Refused as error:
        log.error("the order is given up: %s", error)
    os.kill(os.getpid(), signal.SIGINT)
    return True


class Executor:
    """Waits for orders at the SuperNode and has them done, one after another.

    Args:
        path: the SITE.yaml, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.site = path, sites.load(path)
        secret = (self.site.folder / "secret").read_bytes()
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE])
        self._supernode = connect(self.site.inner, signed)
        self._warning, self._warned = "", 0.0
        self._at_hand = AtHand(self.site.folder, log.warning)

    def serve(self) -> None:
        """Do orders until the process is told to end.

        Raises:
            Refused: another user of this machine holds the SuperNode's port.
            KeyboardInterrupt: the order at hand is lost; both of the site's processes have to begin anew.
        """
        last = -math.inf
        while True:
            token = self._acquire()
            if token:
                self._at_hand.begin()
                self._do(token)
                self._at_hand.end()  # not if it is given up: the supervisor is to see that the order is lost
                last = time.monotonic()
            else:
                time.sleep(_pause(time.monotonic() - last))

    def _acquire(self) -> str:
        """The token of an order, or the empty string."""
        try:
            acquired = self._supernode.AcquireTask(AcquireTaskRequest(supported_task_types=_TASKS))
            return str(acquired.token) if acquired.HasField("task") else ""
        except httpx.HTTPError as error:
            self._warn(f"no reply from the SuperNode on {self.site.inner}: {error!r}")
            return ""

    def _warn(self, text: str) -> None:
        if text != self._warning or time.monotonic() - self._warned > _AGAIN:
            self._warning, self._warned = text, time.monotonic()
            log.warning("%s", text)

    def _do(self, token: str) -> None:
        if self.site.worker == "resident":
            attempt(self.path, self.site.inner, token, self.site.arrival_timeout)
            _give_back_memory()
            return
        command = [sys.executable, "-P", "-m", "clients.site.executor", str(self.path), "--one"]
        # Not as an argument: every user of the machine can read those.
        killed = with_parent(signal.SIGKILL)
        done = subprocess.run(command, input=token, text=True, check=False, preexec_fn=killed)
        if done.returncode not in (0, EXIT_UNSENT):
            log.warning("an order's process ended with %s", done.returncode)
        # Killed, or given up. Any other fault, as of SITE.yaml, a new executor would have, too, and end for ever.
        if done.returncode < 0 or done.returncode == EXIT_ABANDONED:
            raise KeyboardInterrupt


def _pause(idle: float) -> float:
    """Seconds until the next look for an order, after so many without one."""
    return min(max(_SHARE * idle, _SOON), _LATE)


def _give_back_memory() -> None:
    """Return memory that an order has used to the system and the GPU; the backbone stays."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed pages otherwise
    if trim is not None:
        trim(0)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> int:
    """``SITE.yaml [--one]``: do orders until told to end, or the one whose token comes on stdin."""
    from fcit.runs.environment import own_packages_first, quiet_libraries

    quiet_libraries()
    own_packages_first()
    signal.signal(signal.SIGTERM, _end)
    # A parent in the background passes on that SIGINT is ignored, by which an order is given up here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path, one = Path(arguments[0]).resolve(), "--one" in arguments[1:]
    try:
        site = sites.load(path)
        if site.worker == "resident" or one:
            logs.to_file("clients", site.folder / "logs" / "site.log")
        else:  # two processes cannot turn over one file; `fcit client start` keeps this one's output
            logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s")
        if one:
            token = sys.stdin.read().strip()
            return 0 if attempt(path, site.inner, token, site.arrival_timeout) else EXIT_UNSENT
        if site.worker == "resident":
            with collector.paused():
                resolve_path(APP)  # slow: before the first order, not in it
            collector.settle()
        Executor(path).serve()
    except FCITError as error:
        print(f"fcit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        log.warning("order given up")
        return EXIT_ABANDONED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
