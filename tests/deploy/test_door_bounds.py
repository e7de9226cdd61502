"""What the door takes of whom, and what it writes down: the real nginx before a SuperLink that only takes notes."""

import contextlib
import http.client
import http.server
import socket
import ssl
import subprocess
import threading

import numpy as np
import pytest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from clients.site import supervisor
from fcit.cli import main
from fcit.deploy import certificates, control, door
from fcit.deploy import up as operator
from fcit.deploy.init import init
from fcit.deploy.steps import Steps
from fcit.errors import ConfigError
from fcit.federation import codec, packing
from fcit.federation.messages import Answers
from tests.deploy.conftest import plan, signed
from tests.helpers.cases import check_each
from tests.helpers.waiting import LONG, wait

PUSH, ACTIVATE = "/v1/fleet/push-object", "/v1/fleet/activate-node"


class Door:
    """nginx with a deployment's configuration, and what has come through it."""

    def __init__(self, folder) -> None:
        self.deployment = plan(folder / "d")
        init(self.deployment, 2, Steps())
        text = self.deployment.nginx.read_text()
        assert "client_header_timeout 10s;" in text
        self.deployment.nginx.write_text(text.replace("client_header_timeout 10s;", "client_header_timeout 1s;"))
        self.came: list[tuple[str, int]] = []
        came = self.came

        class Notes(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                came.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments) -> None:
                pass

        self.behind = http.server.ThreadingHTTPServer(("127.0.0.1", self.deployment.superlink_port), Notes)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.deployment.certificate, self.deployment.certificate_key)
        self.behind.socket = context.wrap_socket(self.behind.socket, server_side=True)
        threading.Thread(target=self.behind.serve_forever, daemon=True).start()
        self.process = subprocess.Popen(door.command(self.deployment))
        wait(self.answers)

    def answers(self) -> bool:
        try:
            socket.create_connection((self.deployment.host, self.deployment.port), timeout=1).close()
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(LONG)
        self.behind.shutdown()

    def knock(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.deployment.ca)
        return http.client.HTTPSConnection(self.deployment.host, self.deployment.port, context=context, timeout=LONG)

    def begin(self, path: str, size: int, headers: dict[str, str]) -> http.client.HTTPSConnection:
        """A request whose body is promised and not sent."""
        connection = self.knock()
        connection.putrequest("POST", path)
        for name, value in {**headers, "content-length": str(size)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection

    def post(self, path: str, size: int, site: str | None = "0") -> int:
        """The answer's status; the body is sent only where the door asks for it."""
        connection = self.begin(path, size, {} if site is None else signed(self.deployment, site)[0])
        with contextlib.suppress(OSError):  # refused before it was read
            connection.send(bytes(size))
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    def log(self, name: str) -> str:
        file = self.deployment.nginx.with_name(name)
        return file.read_text() if file.is_file() else ""


@pytest.fixture(scope="module")
def opened(tmp_path_factory, nginx):
    made = Door(tmp_path_factory.mktemp("bounds"))
    try:
        yield made
    finally:
        made.close()


def test_a_stranger_gets_403_before_a_byte_of_the_body_is_read(opened):
    before = len(opened.came)
    for path in (*door.FLEET_PATHS, "/", "/v1/control/list-runs"):
        connection = opened.begin(path, 60 * 2**20, {})
        answer = connection.getresponse()
        code = 412 if path == ACTIVATE else 403
        assert (answer.status, answer.getheader("connection")) == (code, "close"), path
        connection.close()
    assert len(opened.came) == before


def test_a_key_that_the_operator_does_not_have_is_a_stranger_s(opened, prepared):
    """That of another deployment's site."""
    before = len(opened.came)
    connection = opened.begin(PUSH, 10, signed(prepared, "0")[0])
    assert connection.getresponse().status == 403
    connection.close()
    assert len(opened.came) == before


def test_a_supernode_with_an_unknown_key_is_answered_as_by_flower(opened):
    """It ends, and a site's supervisor knows the code; at a 403 it would go on doing nothing."""
    connection = opened.begin(ACTIVATE, 10, {})
    error = FlowerError.from_json(connection.getresponse().read().decode())
    connection.close()
    assert error is not None
    assert error.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
    assert supervisor.reason([f"[code: {error.code}] {error.message}"]) is not None


def test_strangers_leave_no_line(opened):
    before = opened.log("access.log"), opened.log("error.log")
    for path in ("/" + "x" * 3000, "/" + "x" * 7000, "/v1/fleet/get-run", "/%00"):
        connection = opened.knock()
        connection.request("GET", path)
        assert connection.getresponse().status in (400, 403, 414)
        connection.close()
    plain = socket.create_connection((opened.deployment.host, opened.deployment.port), timeout=LONG)
    plain.sendall(b"GET /" + b"y" * 3000 + b" HTTP/1.1\r\n\r\n")
    assert b"400" in plain.recv(4096)
    plain.close()
    assert opened.post("/v1/fleet/get-run", 10) == 200  # a site does
    (line,) = wait(lambda: opened.log("access.log")[len(before[0]) :].splitlines())
    assert " site 0 /v1/fleet/get-run 200 " in line
    assert opened.log("error.log") == before[1]


def test_a_site_s_lines_are_short_whatever_it_asks_for(opened):
    before = opened.log("access.log")
    connection = opened.knock()
    connection.request(
        "POST", "/v1/fleet/get-run?" + "x" * 3000, headers=signed(opened.deployment, "0")[0] | {"content-length": "0"}
    )
    assert connection.getresponse().status == 200
    connection.close()
    (line,) = wait(lambda: opened.log("access.log")[len(before) :].splitlines())
    assert len(line) < 200


def test_bodies_are_bounded_path_by_path(opened):
    bytes_of = {"8k": 8 * 2**10, "64k": 64 * 2**10, "9m": 9 * 2**20}

    def check(size: str) -> None:
        path = next(path for path, its_size in door.FLEET_PATHS.items() if its_size == size)
        assert opened.post(path, bytes_of[size]) == 200
        assert opened.came[-1] == (path, bytes_of[size])
        before = len(opened.came)
        assert opened.post(path, bytes_of[size] + 1) == 413
        assert len(opened.came) == before

    check_each({size: size for size in sorted(set(door.FLEET_PATHS.values()))}, check)


def test_the_bound_of_an_object_is_above_what_a_site_sends():
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert door.FLEET_PATHS[PUSH] == "9m"
    assert max(codec.HEAD_OF_REPLY, FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE) + 2**16 <= 9 * 2**20


def test_half_a_body_does_not_reach_the_superlink(opened):
    before = len(opened.came)
    half = opened.begin(PUSH, 8 * 2**20, signed(opened.deployment, "0")[0])
    half.send(bytes(4 * 2**20))
    assert opened.post("/v1/fleet/pull-object", 10) == 200  # later, and through
    assert opened.came[before:] == [("/v1/fleet/pull-object", 10)]
    half.close()


def test_a_site_s_connections_are_bounded_and_another_one_s_are_not(opened):
    headers = signed(opened.deployment, "0")[0]
    waiting = [opened.begin(PUSH, 10, headers) for _ in range(8)]
    try:
        wait(lambda: opened.post("/v1/fleet/pull-object", 10) == 503)
        assert opened.post("/v1/fleet/pull-object", 10, site="1") == 200
    finally:
        for connection in waiting:
            connection.close()
    wait(lambda: opened.post("/v1/fleet/pull-object", 10) == 200)


def test_connections_without_a_request_are_closed(opened):
    address = opened.deployment.host, opened.deployment.port
    silent = socket.create_connection(address, timeout=LONG)
    secure = opened.knock()
    secure.connect()
    dripping = opened.knock()
    dripping.connect()
    dripping.sock.sendall(b"POST " + PUSH.encode() + b" HTTP/1.1\r\nhost: x\r\n")
    for connection in (silent, secure.sock, dripping.sock):
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        connection.close()


def test_a_new_key_is_let_in_without_a_restart(opened):
    opened.deployment.site("7").mkdir()
    certificates.node(opened.deployment, "7", Steps())
    assert opened.post("/v1/fleet/get-run", 10, site="7") == 403
    door.admit(opened.deployment, Steps())
    wait(lambda: opened.post("/v1/fleet/get-run", 10, site="7") == 200)
    assert opened.process.poll() is None


def test_logs_are_put_aside_and_go_on(opened, monkeypatch):
    door.rotate(opened.deployment)
    assert not opened.deployment.nginx.with_name("access.log.1").exists()
    monkeypatch.setattr(door, "LOG", 1)
    for _ in range(door.KEPT + 2):
        assert opened.post("/v1/fleet/get-run", 10) == 200
        wait(lambda: opened.log("access.log"))
        door.rotate(opened.deployment)
        assert opened.log("access.log") == ""
    kept = sorted(file.name for file in opened.deployment.nginx.parent.glob("access.log*"))
    assert kept == ["access.log", *(f"access.log.{n}" for n in range(1, door.KEPT + 1))]
    assert opened.log("access.log.1").startswith("20")


def test_a_full_disk_leaves_logs_as_they_are_and_the_server_up(tmp_path, monkeypatch, capsys):
    deployment = plan(tmp_path / "d")
    deployment.certificate.parent.mkdir(parents=True)
    deployment.certificate.touch()
    deployment.nginx.parent.mkdir()
    log, older = (deployment.nginx.with_name(name) for name in ("access.log", "access.log.1"))
    log.write_text("new")
    older.write_text("old")

    def full(source, target):
        target.write_text("n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(door, "LOG", 1)
    monkeypatch.setattr("shutil.copyfile", full)
    monkeypatch.setattr(operator, "Answers", lambda ask: ask)
    server = operator.Server(deployment, Steps())
    for _ in range(3):
        server._rotate()
    assert {file.name: file.read_text() for file in log.parent.iterdir()} == {
        "access.log": "new",
        "access.log.1": "old",
    }
    assert capsys.readouterr().out.count("No space left on device") == 1


# ---------------------------------------------------------------------- keys that are none


@pytest.fixture
def own(tmp_path):
    """The operator's keys of two sites, and nothing else of a deployment."""
    deployment = plan(tmp_path / "d")
    deployment.nginx.parent.mkdir(parents=True)
    deployment.file.write_text(deployment.facts())
    for name in ("0", "1"):
        deployment.site(name).mkdir(parents=True)
        certificates.node(deployment, name, Steps())
    return deployment


def test_a_key_that_is_none_is_left_out_and_named(own):
    own.public_key("1").write_text("ecdsa-sha2-nistp384 nonsense\n")
    (problem,) = door.admit(own, Steps())
    assert problem.startswith(f"{own.public_key('1')}: not an OpenSSH public key")
    assert door.identity(own.public_key("0")) in own.nginx.with_name("sites.map").read_text()


def test_a_key_under_two_names_is_that_of_the_first_site(own):
    own.public_key("1").write_text(own.public_key("0").read_text())
    (problem,) = door.admit(own, Steps())
    assert "the same key as that of site 0" in problem
    assert own.nginx.with_name("sites.map").read_text().count(";") == 1


def test_a_key_of_another_kind_is_named(own, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k"], check=True)
    with pytest.raises(ConfigError, match="takes keys of kind ecdsa only"):
        door.identity(tmp_path / "k.pub")


@pytest.mark.parametrize("name", ["bob", "01", "-1", "1.old", ""])
def test_a_key_with_another_name_is_left_out_and_named(own, name):
    own.public_key(name).write_text("x")
    assert own.sites() == ["0", "1"]
    (problem,) = door.admit(own, Steps())
    assert problem.startswith(f"{own.public_key(name)}: a site's key is named after its client number")


def test_register_goes_on_past_what_is_no_key(own, monkeypatch, capsys):
    own.public_key("bob").write_text("x")
    monkeypatch.setattr(control, "flwr", lambda *words, **more: {"node-id": len(words)})
    assert main(["deploy", "register", str(own.path)]) == 0
    out = capsys.readouterr().out
    assert "bob.pub: a site's key is named after its client number" in out
    assert own.remembered("nodes").keys() == {"0", "1"}


def test_the_list_of_objects_has_room_for_900(monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 1)
    tensors = {f"t{n}": np.array([n], np.float32) for n in range(450)}
    content = codec.encode(Answers(dataset="d", first=0, texts=[], seconds=0.0, tensors=tensors))
    objects = get_all_nested_objects(content)
    assert len(objects) == 2 * 450 + 3
    assert get_object_tree(content).ByteSize() < 64 * 2**10 - 1000
