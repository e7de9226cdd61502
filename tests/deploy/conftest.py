import os
import shutil
import signal
import socket
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fcit.deploy import submit
from fcit.deploy.deployment import Deployment
from fcit.deploy.init import init
from fcit.deploy.steps import Steps
from tests.helpers.commands import Command
from tests.helpers.waiting import wait


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as s:
        s.bind((address, 0))
        return s.getsockname()[1]


def plan(path: Path, host: str = "127.0.0.2") -> Deployment:
    return Deployment.plan(path, host, free_port(host), None, free_port())


@pytest.fixture(scope="session")
def nginx():
    """Debian's nginx-light, or whatever nginx there is."""
    program = shutil.which("nginx", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if program is None:
        assert os.environ.get("FCIT_REQUIRE_NGINX") != "1", "nginx is not installed"
        pytest.skip("nginx is not installed; FCIT_REQUIRE_NGINX=1 makes this a failure")
    return program


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Deployment:
    """A deployment of two sites, to be looked at; not started and not to be changed."""
    deployment = plan(tmp_path_factory.mktemp("deployment") / "dir")
    init(deployment, 2, Steps())
    return deployment


@pytest.fixture
def deployment(prepared, tmp_path, monkeypatch) -> Deployment:
    """A copy of the prepared deployment in which both sites are registered."""
    copy = tmp_path / "dir"
    shutil.copytree(prepared.path, copy)
    monkeypatch.setattr(submit, "_ASK", 0.0)
    monkeypatch.setattr(submit, "_LOOK", 0.01)
    monkeypatch.setattr("fcit.deploy.submit.app.differs", lambda deployment: [])
    opened = Deployment.open(copy)
    opened.remember("nodes", {"0": "11", "1": "12"})
    return opened


def signed(deployment: Deployment, name: str) -> tuple[dict[str, str], bytes]:
    """Headers as a SuperNode with this site's key sends them, and its public key."""
    private = serialization.load_ssh_private_key((deployment.site(name) / "site.key").read_bytes(), None)
    public, stamp = public_key_to_bytes(private.public_key()), now().isoformat()
    headers = {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(sign_message(private, stamp.encode())).decode(),
        "content-type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
    }
    return headers, public


class Up:
    """`fcit deploy up` as a process of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.log = deployment.path.with_name("up.log")
        self.process = Command("deploy", "up", deployment.path, log=self.log)
        wait(lambda: self.process.returncode is not None or "sites reach the door" in self.log.read_text())
        assert self.process.returncode is None, self.log.read_text()

    def children(self) -> list[int]:
        """Processes that it has started itself."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def stop(self) -> int:
        if self.process.returncode is None:
            self.process.signal(signal.SIGTERM)
        return self.process.wait()
