"""An honest round over a slow link: ``python -m tests.evidence.link`` (part of ``make evidence``; about ten minutes).

The way of an order and its reply, as large as those of LLaVA-1.5-7B (130 MB each), between a SuperLink behind its door
and a site in a network namespace whose link lets 1 Mbit/s to 1 Gbit/s through (tc; root is needed). Where 130 MB would
take hours, less is sent and the seconds are scaled; the result says so. The site sends back what it got, changed:
nothing is trained. Beside it, the same bytes there and back by plain HTTPS, over the same link, same certificate.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcit.config import Federation
from fcit.config.site import Site
from fcit.deploy import control
from fcit.deploy.deployment import Deployment
from fcit.deploy.init import init
from fcit.deploy.steps import Steps
from tests.deploy.conftest import Up, free_port
from tests.evidence import netns
from tests.helpers.waiting import wait

RESULT = Path(__file__).parent / "results" / "link.json"
FULL = 130.0  # MB of an update of LLaVA-1.5-7B
RATES = {"1mbit": 1e6, "10mbit": 1e7, "100mbit": 1e8, "1gbit": 1e9, "no limit": None}  # bits per second
LONGEST = 40.0  # seconds one way at the rate itself; more is scaled
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "link"
version = "1.0.0"
description = "sends tensors and takes them back"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
fab-include = ["linking/**/*.py"]
[tool.flwr.app.components]
serverapp = "linking.app:app"
clientapp = "linking.app:client"
[tool.flwr.app.config]
bytes = 1
result = ""
"""
APP = """\
import json, time
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ServerApp()
client = ClientApp()

@client.train()
def train(message, context):
    back = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    return Message(RecordDict({"arrays": ArrayRecord(back)}), reply_to=message)

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    count = int(context.run_config["bytes"])
    for size in (1, count):  # the first one starts what is started once
        sent = np.random.default_rng(size).integers(0, 255, size, dtype=np.uint8)
        begin = time.monotonic()
        message = Message(RecordDict({"arrays": ArrayRecord([sent])}), dst_node_id=nodes[0], message_type="train")
        reply, = grid.send_and_receive([message], timeout=3600)
        seconds = time.monotonic() - begin
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        assert (reply.content["arrays"].to_numpy_ndarrays()[0] == sent + 1).all()
        if size == 1:
            empty = seconds
    Path(context.run_config["result"]).write_text(json.dumps({"empty": empty, "seconds": seconds}))
"""

UPLOAD = """\
import http.client, os, ssl, sys, time
host, port, ca, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sent = os.urandom(size)
connection = http.client.HTTPSConnection(host, port, context=ssl.create_default_context(cafile=ca))
begin = time.monotonic()
connection.request("PUT", "/", sent)
back = connection.getresponse().read()
seconds = time.monotonic() - begin
assert back == sent
print(seconds)
"""


class Echo(http.server.BaseHTTPRequestHandler):
    """Sends back what was put."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: the requests are ours."""


@contextmanager
def https(deployment: Deployment) -> Iterator[int]:
    """A plain HTTPS server at the operator's address with the operator's certificate; yields its port."""
    with http.server.ThreadingHTTPServer((netns.DOOR, 0), Echo) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(deployment.certificate, deployment.certificate_key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def uploaded(deployment: Deployment, net: netns.Network, port: int, megabytes: float) -> float:
    """Seconds of so many MB to the operator and back by HTTPS."""
    ca = str(deployment.site("0") / "ca.crt")
    words = [netns.DOOR, str(port), ca, str(int(megabytes * 1e6))]
    command = [*net.inside(0), sys.executable, "-c", UPLOAD, *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextmanager
def supernode(deployment: Deployment, net: netns.Network, folder: Path, rate: float | None) -> Iterator[None]:
    """Flower's own SuperNode in the namespace, with the key of site 0, told of its uplink as SITE.yaml tells it."""
    site = deployment.site("0")
    command = [
        *net.inside(0),
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--superlink", deployment.door, "--root-certificates", str(site / "ca.crt")),
        *("--auth-supernode-private-key", str(site / "site.key"), "--host", "127.0.0.1", "--port", str(free_port())),
    ]
    env = deployment.environment(folder / "node")
    piece = Site(uplink_mbit=None if rate is None else rate / 1e6).piece
    if piece is not None:
        env["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"] = str(piece)
    with (folder / "supernode.log").open("a") as log:
        node = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)


def measure(deployment: Deployment, app: Path, megabytes: float, result: Path) -> dict[str, float]:
    """One order and its reply."""
    settings = ("-c", f'bytes={int(megabytes * 1e6)} result="{result}"')
    number = str(control.flwr(deployment, "run", str(app), settings=settings)["run-id"])
    wait(lambda: result.is_file() or number not in control.unfinished(deployment), pause=2.0)
    if not result.is_file():
        raise RuntimeError(str(control.flwr(deployment, "ls", settings=("--run-id", number))))
    return dict(json.loads(result.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", choices=list(RATES), action="append", help="only this one (can be repeated)")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds one way, above which less is sent")
    parser.add_argument("--dry", action="store_true", help="write nothing into results/")
    args = parser.parse_args()
    if not netns.available():
        sys.exit("link: needs root, `ip netns` and `tc`")
    found: dict[str, Any] = {"timeout_default": Federation().timeout, "megabytes": FULL, "rates": {}}
    with tempfile.TemporaryDirectory() as place, netns.network(1) as net:
        folder = Path(place)
        deployment = Deployment.plan(folder / "dir", netns.DOOR, free_port(netns.DOOR), None, free_port())
        init(deployment, 1, Steps())
        app = folder / "link"
        (app / "linking").mkdir(parents=True)
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "linking" / "__init__.py").write_text("")
        (app / "linking" / "app.py").write_text(APP)
        up = Up(deployment)
        control.register(deployment, [], Steps())
        try:
            for name in args.rate or RATES:
                rate = RATES[name]
                net.shape(0, rate)
                sent = FULL if rate is None else min(FULL, rate / 8e6 * args.longest)
                begun = time.monotonic()
                with supernode(deployment, net, folder, rate):
                    one = measure(deployment, app, sent, folder / f"{name}.json")
                with https(deployment) as port:
                    plain = uploaded(deployment, net, port, sent)
                found["rates"][name] = row(rate, sent, one, plain)
                print(name, found["rates"][name], f"({time.monotonic() - begun:.0f} s)", flush=True)
        finally:
            up.stop()
    if not args.dry:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def row(rate: float | None, sent: float, one: dict[str, float], plain: float) -> dict[str, float | bool | None]:
    """What an order and a reply of :data:`FULL` MB take at a rate, scaled from what was sent.

    Args:
        rate: bits per second that the link lets through; None: whatever it can.
        sent: MB of the order, and of the reply.
        one: seconds of that order and its reply, and of an ``empty`` one.
        plain: seconds of the same bytes both ways by HTTPS.
    """
    moving = one["seconds"] - one["empty"]
    full = one["empty"] + moving * FULL / sent
    return {
        "sent_mb": round(sent, 1),
        "seconds": round(one["seconds"], 1),
        "seconds_without_tensors": round(one["empty"], 1),
        "share_of_the_rate": None if rate is None else round(2 * sent * 8e6 / rate / moving, 2),
        "mb_per_second": round(2 * sent / moving, 1),
        "https_mb_per_second": round(2 * sent / plain, 1),
        "seconds_for_130_mb": round(full, 1),
        "scaled": sent < FULL,
        "within_the_default_timeout": full < Federation().timeout,
    }


if __name__ == "__main__":
    main()
