"""A real SuperLink with TLS and node keys on loopback, its operator, and sites that are really started."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from tests.helpers.commands import Process
from tests.helpers.waiting import LONG, wait

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_certificates(folder: Path) -> None:
    """ca.crt, and server.pem with server.key for localhost and 127.0.0.1."""
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run(
        "openssl",
        "req",
        "-x509",
        *curve,
        "-days",
        "2",
        "-subj",
        "/CN=test-ca",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        cwd=folder,
    )
    run("openssl", "req", *curve, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr", cwd=folder)
    run(
        "openssl",
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-out",
        "server.pem",
        "-extfile",
        extensions,
        cwd=folder,
    )


def make_key(path: Path) -> None:
    """A node's key pair, ``path`` and ``path.pub``."""
    run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "test", "-f", path)


class SuperLink:
    """A SuperLink that lives in a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        make_certificates(folder)
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )
        self.env = {
            **os.environ,
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def __enter__(self):
        command = [
            BIN / "flower-superlink",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--enable-supernode-auth",
            "--ssl-ca-certfile",
            "ca.crt",
            "--ssl-certfile",
            "server.pem",
            "--ssl-keyfile",
            "server.key",
        ]
        with (self.folder / "superlink.log").open("w") as log:
            self.process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        try:
            wait(lambda: answers(self.port), explain=lambda: (self.folder / "superlink.log").read_text())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=LONG)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def flwr(self, *arguments: str | Path) -> dict:
        out = subprocess.run(
            [BIN / "flwr", *arguments, "--format", "json"],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert out.returncode == 0, out.stdout + out.stderr
        return json.loads(out.stdout)

    def _control(self) -> ControlHttpClient:
        """Asks the SuperLink what `flwr` would, every start of which takes a second or two of processor time."""
        ca = (self.folder / "ca.crt").read_bytes()
        return ControlHttpClient.from_server_address(f"127.0.0.1:{self.port}", False, ca, [])

    def register(self, public_key: Path, name: str) -> None:
        key = public_key_to_bytes(load_ssh_public_key(public_key.read_bytes()))
        assert self._control().RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id

    def pin(self, app: Path) -> str:
        """The hash that a site pins for an app."""
        for old in self.folder.glob("*.fab"):
            old.unlink()
        run(BIN / "flwr", "build", "--app", app, cwd=self.folder, env=self.env)
        (bundle,) = self.folder.glob("*.fab")
        return hashlib.sha256(bundle.read_bytes()).hexdigest()

    def submit(self, app: Path) -> str:
        """Run an app and return its final status."""
        run = str(self.flwr("run", app, "test")["run-id"])
        log = self.folder / "superlink.log"
        wait(lambda: re.search(rf"Finished task \d+ of run {run}", log.read_text()), lambda: log.read_text()[-4000:])
        return wait(lambda: end(self._control(), int(run)), lambda: log.read_text()[-4000:])


def end(control: ControlHttpClient, run: int) -> str:
    """The final status of a run; empty while it goes on."""
    status = control.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
    return f"{status.status}:{status.sub_status}" if status.status == "finished" else ""


class Site:
    """A site with a folder of its own, started as `fcit client start` does."""

    process: Process

    def __init__(self, folder: Path, superlink: SuperLink, **settings) -> None:
        self.folder = folder
        folder.mkdir()
        make_key(folder / "site.key")
        (folder / "data").mkdir()
        (folder / "ca.crt").write_bytes((superlink.folder / "ca.crt").read_bytes())
        self.file = folder / "SITE.yaml"
        self.settings = {"name": "0", "superlink": f"127.0.0.1:{superlink.port}", "port": free_port(), **settings}
        self.file.write_text(yaml.safe_dump(self.settings))

    def change(self, **settings) -> None:
        self.settings |= settings
        self.file.write_text(yaml.safe_dump(self.settings))

    def log(self, name: str) -> str:
        file = self.folder / "home" / "logs" / f"{name}.log"
        return file.read_text() if file.is_file() else ""

    def logs(self) -> str:
        return "\n".join(f"== {n}\n{self.log(n)}" for n in ("start", "supernode", "executor", "site"))

    def __enter__(self):
        self.process = Process(
            "clients.site.supervisor:start", self.file, log=self.folder / "out.txt", folder=self.folder
        )
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> int:
        if self.process.returncode is None:
            self.process.signal(signal.SIGTERM)
        return self.process.wait()

    def child(self, name: str) -> int:
        """Process id of the ``SuperNode`` or ``executor`` that runs now."""
        return int(re.findall(rf"the {name} runs as process (\d+)", self.log("start"))[-1])


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
        return True
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
