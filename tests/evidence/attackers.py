"""A deployment under attack: ``python -m tests.evidence.attackers`` (part of ``make evidence``; about ten minutes).

Each scene is something that a stranger, a site or an accident does to a deployment on loopback, and what it costs.
Everything is bounded: seconds, connections and bytes stand below. ``--tree`` attacks another checkout (its processes
run with that tree's packages), ``--label`` names the column of the result: "before" is what was there before these
defences, with flwr 1.42.

What needs no real process (replies that are no messages, garbage, tensors of other sizes, a site's veto) is attacked in
``tests/faults`` and ``tests/server``, on every run of the test suite.
"""

from __future__ import annotations

import argparse
import email.utils
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from tests.helpers.superlink import free_port, make_certificates, make_key

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "attackers.json"
BIN = Path(sys.executable).parent
FLOOD, PATH_LENGTH, THREADS = 3.0, 7000, 4  # seconds, characters, connections at a time
HALF_SENT, HALF_SENT_BYTES = 12, 40 * 2**20  # connections, each with half of such a body
HALF_OPEN, HALF_OPEN_FOR = 300, 12.0  # connections that send nothing, and seconds until they are counted
PATIENCE = 150.0  # seconds in which what has failed must be back


def wait(condition: Callable[[], Any], seconds: float) -> float | None:
    """Seconds until the condition holds; None if it does not within so many."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if condition():
            return round(time.monotonic() - begin, 1)
        time.sleep(0.2)
    return None


class Deployed:
    """`fcit deploy up` of some checkout, one registered site, nothing that runs there.

    Args:
        tree: whose packages are run.
    """

    def __init__(self, folder: Path, tree: Path) -> None:
        self.path, self.port, self.inner, self.tree = folder / "dir", free_port(), free_port(), tree
        self.env = {**os.environ, "PYTHONPATH": str(tree), "FCIT_CACHE": str(folder / "cache")}
        places = ["--port", str(self.port), "--superlink-port", str(self.inner)]
        self.fcit("deploy", "init", self.path, "--clients", "1", "--host", "127.0.0.1", *places)
        self.log = folder / "up.log"

    def fcit(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of that checkout, which has to succeed unless it is a check."""
        command = [sys.executable, "-m", "fcit.cli", *map(str, arguments)]
        done = subprocess.run(command, env=self.env, cwd=self.tree, capture_output=True, text=True)
        if done.returncode and arguments[1] != "check":
            raise RuntimeError(f"{arguments}: {done.stdout}{done.stderr}")
        return done

    def __enter__(self) -> Deployed:
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "fcit.cli", "deploy", "up", str(self.path)]
            self.up = subprocess.Popen(command, env=self.env, cwd=self.tree, stdout=log, stderr=log)
        if wait(lambda: "sites reach the door" in self.log.read_text(), 300.0) is None:
            raise RuntimeError(self.log.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self.up.terminate()
        self.up.wait(60)

    def process(self, name: str) -> psutil.Process | None:
        """The process below ``up`` whose command holds this word and that has not ended."""
        for child in psutil.Process(self.up.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE and any(name in word for word in child.cmdline()[:3]):
                    return child
        return None

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection through the door, as anybody with the address can have."""
        context = ssl.create_default_context(cafile=self.path / "tls" / "ca.crt")
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def answers(self) -> float | None:
        """Seconds that an honest request takes; None if there is no answer."""
        begin = time.monotonic()
        try:
            with self.connect() as secure:
                secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return round(time.monotonic() - begin, 3) if secure.recv(64).startswith(b"HTTP/1.1") else None
        except OSError:
            return None

    def logged(self) -> int:
        """Bytes of the door's logs."""
        return sum(file.stat().st_size for file in (self.path / "door").glob("*.log*"))


# ------------------------------------------------------------------ strangers at the door


def long_paths(deployed: Deployed) -> dict[str, Any]:
    """Requests for long paths that are not there, without any key: what they leave in the logs."""
    before, sent, refused = deployed.logged(), [0] * THREADS, [0] * THREADS
    request = f"GET /{'x' * PATH_LENGTH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    deadline = time.monotonic() + FLOOD

    def flood(number: int) -> None:
        while time.monotonic() < deadline:
            try:
                with deployed.connect() as secure:
                    while time.monotonic() < deadline:
                        secure.sendall(request)
                        sent[number] += 1
                        if not secure.recv(4096):
                            break
            except OSError:
                refused[number] += 1

    _all(flood, THREADS)
    grown = deployed.logged() - before
    return {"requests": sum(sent), "log_mb": round(grown / 1e6, 2), "bytes_each": round(grown / max(sum(sent), 1))}


def half_sent_bodies(deployed: Deployed) -> dict[str, Any]:
    """Half of large bodies to a path of sites, without a valid signature, then silence: memory of the SuperLink."""
    superlink = deployed.process("flower-superlink")
    assert superlink is not None
    before = superlink.memory_info().rss
    taken = [0] * HALF_SENT
    held: list[ssl.SSLSocket] = []
    head = (
        "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: {PROTOBUF_MEDIA_TYPE}\r\nContent-Length: {HALF_SENT_BYTES}\r\n\r\n"
    ).encode()

    def send(number: int) -> None:
        with suppress(OSError):
            secure = deployed.connect()
            held.append(secure)
            secure.settimeout(20)
            secure.sendall(head)
            for _ in range(HALF_SENT_BYTES // 2 // 2**20):
                secure.sendall(bytes(2**20))
                taken[number] += 1

    _all(send, HALF_SENT)
    time.sleep(1.0)
    peak = superlink.memory_info().rss
    honest = deployed.answers()
    for secure in held:
        secure.close()
    return {
        "sent_mb": sum(taken),
        "superlink_mb_before": before // 2**20,
        "superlink_mb_peak": peak // 2**20,
        "honest_request_seconds": honest,
    }


def half_open(deployed: Deployed) -> dict[str, Any]:
    """Connections that never send a byte: how many are kept, and whether anybody else is still answered."""
    with ExitStack() as stack:
        opened = []
        for _ in range(HALF_OPEN):
            with suppress(OSError):
                opened.append(stack.enter_context(closing(socket.create_connection(("127.0.0.1", deployed.port), 5))))
        time.sleep(HALF_OPEN_FOR)
        kept = sum(map(_open, opened))
        return {"opened": len(opened), "kept": kept, "honest_request_seconds": deployed.answers()}


def _open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def dead_superexec(deployed: Deployed) -> dict[str, Any]:
    """What starts runs is killed: seconds until there is another one."""
    before = deployed.process("flower-superexec")
    assert before is not None
    before.kill()

    def another() -> bool:
        now = deployed.process("flower-superexec")
        return now is not None and now.pid != before.pid

    return {"back_after_seconds": wait(another, 60.0)}


def _all(work: Callable[[int], None], number: int) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ------------------------------------------------------------------ faults that a site meets


class FakeDoor:
    """A door that knows every site, has no orders, and fails when it is told to.

    Attributes:
        fails: pieces of paths that are answered with HTTP 500 once, each.
        behind: seconds by which its clock is behind.
    """

    def __init__(self, folder: Path) -> None:
        make_certificates(folder)
        self.fails: list[str] = []
        self.behind = 0.0
        self.calls: list[tuple[float, str]] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        door = self
        answers = {
            "/activate-node": ActivateNodeResponse(node_id=5).SerializeToString(),
            "heartbeat": SendNodeHeartbeatResponse(success=True).SerializeToString(),
            "pull-messages": PullMessagesResponse().SerializeToString(),
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def date_time_string(self, timestamp: float | None = None) -> str:
                return email.utils.formatdate(time.time() - door.behind, usegmt=True)

            def do_HEAD(self) -> None:
                self.send_error(403)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                door.calls.append((time.monotonic(), self.path))
                failing = next((piece for piece in door.fails if piece in self.path), None)
                if failing is not None:
                    door.fails.remove(failing)
                body = next((body for piece, body in answers.items() if piece in self.path), b"")
                self.send_response(200 if failing is None else 500)
                self.send_header("content-type", PROTOBUF_MEDIA_TYPE if failing is None else "text/plain")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def called(self, piece: str, since: float) -> bool:
        """Whether a path with this piece has been called since then."""
        return any(at > since and piece in path for at, path in self.calls)


@contextmanager
def running_site(folder: Path, door: FakeDoor, tree: Path) -> Iterator[Path]:
    """`fcit client start` of a checkout at a fake door; the path of its SITE.yaml."""
    make_key(folder / "site.key")
    (folder / "data").mkdir()
    file = folder / "SITE.yaml"
    file.write_text(yaml.safe_dump({"superlink": f"127.0.0.1:{door.port}", "port": free_port()}))
    env = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "fcit.cli", "client", "start", str(file)]
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(command, env=env, cwd=tree, stdout=out, stderr=out)
    try:
        if wait(lambda: door.called("pull-messages", 0.0), 120.0) is None:
            raise RuntimeError((folder / "out.txt").read_text())
        yield file
    finally:
        process.terminate()
        process.wait(60)


def http_500(folder: Path, tree: Path, path: str) -> dict[str, Any]:
    """One HTTP 500 to a call of the SuperNode: seconds until the site is there again."""
    door = FakeDoor(folder)
    with running_site(folder, door, tree):
        door.fails.append(path)
        if wait(lambda: not door.fails, 60.0) is None:
            raise RuntimeError(f"{path} was not called")
        since = time.monotonic()
        back = wait(lambda: door.called("/activate-node", since), PATIENCE)
    return {"back_after_seconds": back}


def stopped_supernode(folder: Path, tree: Path) -> dict[str, Any]:
    """SIGSTOP to the SuperNode: seconds until the site is there again."""
    door = FakeDoor(folder)
    with running_site(folder, door, tree) as file:
        log = (file.parent / "home" / "logs" / "start.log").read_text()
        os.kill(int(re.findall(r"the SuperNode runs as process (\d+)", log)[-1]), signal.SIGSTOP)
        since = time.monotonic()
        back = wait(lambda: door.called("/activate-node", since), PATIENCE)
    return {"back_after_seconds": back}


def wrong_clock(folder: Path, tree: Path) -> dict[str, Any]:
    """A clock that is 20 s ahead of the door's: whether `fcit client check` names it."""
    door = FakeDoor(folder)
    door.behind = 20.0
    with running_site(folder, door, tree) as file:
        done = subprocess.run(
            [sys.executable, "-m", "fcit.cli", "client", "check", str(file)],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            capture_output=True,
            text=True,
        )
    named = [line for line in done.stdout.splitlines() if line.startswith("FAIL clock")]
    return {"named": bool(named), "sentence": "".join(named)}


AT_THE_DOOR = (long_paths, half_open, half_sent_bodies, dead_superexec)
AT_A_SITE: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "http_500_to_a_poll": lambda folder, tree: http_500(folder, tree, "pull-messages"),
    "http_500_to_a_heartbeat": lambda folder, tree: http_500(folder, tree, "heartbeat"),
    "stopped_supernode": stopped_supernode,
    "wrong_clock": wrong_clock,
}


def main() -> None:
    scenes = [scene.__name__ for scene in AT_THE_DOOR] + list(AT_A_SITE)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose processes are attacked")
    parser.add_argument("--label", default="after", help="column of the result")
    parser.add_argument("--scene", choices=scenes, action="append", help="only this one (can be repeated)")
    parser.add_argument("--dry", action="store_true", help="write nothing into results/")
    args = parser.parse_args()
    wanted, tree = args.scene or scenes, args.tree.resolve()
    figures: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}

    def note(name: str, values: dict[str, Any]) -> None:
        print(name, args.label, values, flush=True)
        figures.setdefault(name, {})[args.label] = values
        if not args.dry:
            RESULT.write_text(json.dumps(figures, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        if any(scene.__name__ in wanted for scene in AT_THE_DOOR):
            with Deployed(Path(folder), tree) as deployed:
                for scene in AT_THE_DOOR:
                    if scene.__name__ in wanted:
                        note(scene.__name__, scene(deployed))
        for name, at_site in AT_A_SITE.items():
            if name in wanted:
                place = Path(folder) / name
                place.mkdir()
                note(name, at_site(place, tree))


if __name__ == "__main__":
    main()
