"""The door: who gets through it to what. Each claim of the threat model, tried against a real SuperLink."""

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fcit.cli import main
from fcit.config import site
from fcit.deploy import clock, control, door
from fcit.deploy import up as operator
from fcit.deploy.deployment import Deployment
from fcit.deploy.init import init, renew
from fcit.deploy.steps import DeployError, Steps
from fcit.deploy.up import superlink_command
from fcit.errors import ConfigError
from tests.deploy.conftest import Up, plan, signed
from tests.helpers.superlink import answers
from tests.helpers.waiting import wait

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}


def all_paths() -> set[tuple[str, str]]:
    """Every (method, path) that Flower's SuperLink serves."""
    from fastapi.routing import iter_route_contexts
    from flwr.superlink.main import create_app

    routes = [context.route for context in iter_route_contexts(create_app().routes)]
    return {(method, route.path) for route in routes for method in route.methods or ()}


def test_the_configuration_is_valid(prepared, nginx):
    done = subprocess.run([*door.command(prepared), "-t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_door_knows_what_flower_serves():
    """A new Flower with other paths shows here, not at a site."""
    fleet = {path for method, path in all_paths() if path.startswith("/v1/fleet/")}
    assert fleet - set(door.FLEET_PATHS) == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert set(door.FLEET_PATHS) <= fleet


def test_the_superlink_listens_on_loopback_only_and_wants_keys(prepared):
    command = superlink_command(prepared)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


def test_without_nginx_nothing_is_started(prepared, monkeypatch, capsys):
    monkeypatch.setattr("fcit.deploy.door.shutil.which", lambda *a, **k: None)
    assert main(["deploy", "up", str(prepared.path)]) == 1
    assert "apt install nginx-light" in capsys.readouterr().err


def test_a_taken_port_is_named(prepared, nginx, capsys):
    with socket.socket() as other:
        other.bind((prepared.bind, prepared.port))
        other.listen()
        assert main(["deploy", "up", str(prepared.path)]) == 1
    assert f"cannot listen on 127.0.0.2:{prepared.port}" in capsys.readouterr().err


def test_a_superlink_that_is_not_up(prepared, capsys):
    assert main(["deploy", "status", str(prepared.path)]) == 1
    assert "fcit deploy up" in capsys.readouterr().err


@pytest.fixture(scope="module")
def up(tmp_path_factory, nginx):
    """A deployment that is up; sites 0 and 2 are registered, site 1 has a key that is not."""
    deployment = plan(tmp_path_factory.mktemp("door") / "dir")
    init(deployment, 3, Steps())
    up = Up(deployment)
    try:
        control.register(deployment, ["0", "2"], Steps())
        yield up
    finally:
        children = up.children()
        assert up.stop() == 0, up.log.read_text()
        assert len(children) == 3
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def deployed(up):
    return up.deployment


@pytest.fixture
def outside(deployed):
    """Somebody with the CA certificate."""
    context = ssl.create_default_context(cafile=deployed.ca)
    with httpx.Client(base_url=f"https://{deployed.door}", verify=context, trust_env=False) as client:
        yield client


def knock(deployed) -> http.client.HTTPSConnection:
    """As `outside`, but a path or header is sent as it is."""
    context = ssl.create_default_context(cafile=deployed.ca)
    return http.client.HTTPSConnection(deployed.host, deployed.port, context=context)


def activate(deployed, client, name: str, **change: str) -> httpx.Response:
    headers, public = signed(deployed, name)
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30).SerializeToString()
    return client.post("/v1/fleet/activate-node", content=body, headers={**headers, **change})


@pytest.mark.slow
def test_with_the_ca_certificate_only_fleet_paths_are_there(deployed, outside):
    closed = [(m, p) for m, p in all_paths() if p not in door.FLEET_PATHS]
    assert len(closed) > 60
    for method, path in closed:
        assert outside.request(method, path).status_code == 403, path
    for path in door.FLEET_PATHS:
        assert outside.get(path).status_code == (412 if path.endswith("/activate-node") else 403), path


@pytest.mark.slow
def test_a_site_s_key_opens_nothing_more(deployed, outside):
    headers, _ = signed(deployed, "0")
    assert activate(deployed, outside, "0").status_code == 200  # the key is a good one
    closed = [path for method, path in all_paths() if method == "POST" and path not in door.FLEET_PATHS]
    for path in closed:
        assert outside.post(path, headers=headers).status_code == 403, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages%00",
        "/V1/Control/list-runs",
        "https://127.0.0.1/v1/control/list-runs",
        "/v1/control/list-runs?x=/v1/fleet/get-run",
        "/v1/fleet/pull-messages/..%2f..%2fcontrol/list-runs",
    ],
)
def test_paths_that_try_to_slip_through(deployed, path):
    for headers in (PROTOBUF, signed(deployed, "0")[0]):
        connection = knock(deployed)
        connection.request("POST", path, headers=headers)
        assert connection.getresponse().status in (400, 403, 404)
        connection.close()


@pytest.mark.slow
def test_the_403_is_the_door_s_doing(deployed):
    """The same request on loopback is answered: it is the door, not Flower, that refuses it."""
    context = ssl.create_default_context(cafile=deployed.ca)
    answer = httpx.post(
        f"https://127.0.0.1:{deployed.superlink_port}/v1/control/list-runs",
        verify=context,
        trust_env=False,
        headers=PROTOBUF,
    )
    assert answer.status_code == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((deployed.host, deployed.superlink_port), timeout=2)


@pytest.mark.slow
def test_flower_refuses_a_key_that_is_not_registered(deployed, outside):
    assert "2004" in activate(deployed, outside, "1").text
    assert activate(deployed, outside, "1").is_error


@pytest.mark.slow
def test_flower_refuses_a_node_without_or_with_a_wrong_signature(deployed, outside):
    assert activate(deployed, outside, "0", **{"flwr-signature": "AAAA"}).status_code == 401
    body = PullMessagesRequest(node=Node(node_id=1)).SerializeToString()
    named = {**PROTOBUF, "flwr-public-key": signed(deployed, "0")[0]["flwr-public-key"]}
    for headers, code in ((PROTOBUF, 403), (named, 401)):
        assert outside.post("/v1/fleet/pull-messages", content=body, headers=headers).status_code == code


@pytest.mark.slow
def test_a_site_cannot_ask_for_another_one_s_orders(deployed, outside):
    headers, _ = signed(deployed, "0")
    own = int(deployed.remembered("nodes")["0"])
    for node, code in ((own, 200), (own + 1, 401)):
        body = PullMessagesRequest(node=Node(node_id=node)).SerializeToString()
        assert outside.post("/v1/fleet/pull-messages", content=body, headers=headers).status_code == code


@pytest.mark.slow
def test_the_operator_s_commands_fail_at_the_door(deployed, outside, tmp_path):
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "{deployed.door}"\nroot-certificates = "{deployed.ca}"\n'
    )
    environment = deployed.environment(tmp_path)
    key = deployed.public_key("1")
    before = control.runs(deployed)
    for command in (["run", deployed.app, "x"], ["supernode", "register", key, "x"], ["ls", "x"]):
        done = subprocess.run(["flwr", *command], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode != 0 and "403" in done.stderr, (command, done.stdout, done.stderr)
    assert control.runs(deployed) == before
    assert "2004" in activate(deployed, outside, "1").text


@pytest.mark.slow
def test_another_authority_is_not_believed(deployed, prepared):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{deployed.door}/", verify=ssl.create_default_context(cafile=prepared.ca), trust_env=False)


@pytest.mark.slow
def test_register_status_and_unregister(deployed, outside, capsys):
    assert activate(deployed, outside, "2").status_code == 200
    control.register(deployed, ["2"], Steps())
    control.status(deployed, Steps())
    shown = capsys.readouterr().out
    assert "site 2 is registered already" in shown
    assert "online" in shown
    assert "not registered" in shown
    assert "$ FLWR_HOME=" in shown

    control.unregister(deployed, ["2"], Steps())
    assert activate(deployed, outside, "2").is_error
    with pytest.raises(DeployError, match="already in use"):
        control.register(deployed, ["2"], Steps())
    with pytest.raises(ConfigError, match="is not registered"):
        control.unregister(deployed, ["1"], Steps())


@pytest.mark.slow
def test_the_hash_that_is_submitted_is_the_pinned_one(deployed):
    number = control.flwr(deployed, "run", str(deployed.app))["run-id"]  # without a run folder: fails at once
    wait(lambda: not control.unfinished(deployed), pause=2)
    run = control.flwr(deployed, "ls", settings=("--run-id", number))["runs"][0]
    assert [run["fab-hash"]] == site.load(deployed.site("0") / "SITE.yaml").apps
    assert run["status"] == "finished:failed"
    assert "nothing to run" in run["status-details"]


def served(address: tuple[str, int], ca: Path) -> int | None:
    """Serial number of the certificate that is served there; None if nobody answers just now."""
    try:
        with clock.connection(*address, ca, "localhost") as secure:
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number
    except OSError:
        return None


@pytest.mark.slow
def test_what_dies_is_started_again_and_a_new_certificate_is_taken(up, deployed, capsys):
    """The last one to use this deployed."""
    addresses = [(deployed.host, deployed.port), ("127.0.0.1", deployed.superlink_port)]
    names = ["SuperLink", "SuperExec", "door"]

    def runs_as(name: str) -> list[str]:
        return re.findall(rf"the {name} runs as process (\d+)", up.log.read_text())

    first = sorted(up.children())
    for name, pid in zip(names, first, strict=True):
        os.kill(pid, signal.SIGKILL)
        wait(lambda name=name: runs_as(name), explain=up.log.read_text)
        assert f"the {name} was killed by SIGKILL; out of memory?; started again in 1 s" in up.log.read_text()

    def all_answer() -> bool:
        return all(answers(port, host) for host, port in addresses)

    wait(all_answer, explain=up.log.read_text)
    assert not set(first) & set(up.children())
    control.status(deployed, Steps())
    shown = " ".join(capsys.readouterr().out.split())
    assert "SuperExec" in shown
    assert "it was killed by SIGKILL; out of memory?" in shown

    before, proxy = served(addresses[0], deployed.ca), runs_as("door")
    renew(deployed, Steps())
    for address in addresses:
        wait(lambda address=address: served(address, deployed.ca) not in (None, before), explain=up.log.read_text)
    assert runs_as("door") == proxy  # it was not even restarted


def test_a_door_that_would_not_start_is_an_error_before_anything_starts(prepared, tmp_path, nginx, capsys):
    copy = tmp_path / "d"
    shutil.copytree(prepared.path, copy)
    (copy / prepared.nginx.relative_to(prepared.path)).write_text("nonsense;")
    assert main(["deploy", "up", str(copy)]) == 1
    said = capsys.readouterr()
    assert 'unknown directive "nonsense"' in said.err
    assert not (copy / "superlink" / "secret").exists()


@pytest.fixture
def stand_ins(prepared, tmp_path, monkeypatch):
    """Run the server with shell commands as its three processes; the SuperLink's port is listened on."""
    copy = tmp_path / "d"
    shutil.copytree(prepared.path, copy)
    deployment = Deployment.open(copy)
    monkeypatch.setattr(operator, "go_on", lambda deployment, steps: None)

    def run(
        superlink: str = "exec sleep 300", superexec: str = "exec sleep 300", proxy: str = "exec sleep 300"
    ) -> None:
        monkeypatch.setattr(operator, "superlink_command", lambda _: ["sh", "-c", superlink])
        monkeypatch.setattr(operator, "superexec_command", lambda _: ["sh", "-c", superexec])
        monkeypatch.setattr(door, "command", lambda _: ["sh", "-c", proxy])
        operator.Server(deployment, Steps()).run()

    with socket.create_server(("127.0.0.1", deployment.superlink_port)):
        yield run


@pytest.mark.parametrize(("which", "name"), [("superlink", "SuperLink"), ("superexec", "SuperExec"), ("proxy", "door")])
def test_what_does_not_start_is_an_error(stand_ins, which, name):
    # it ends when its parent has seen that the port is listened on, or before
    with pytest.raises(DeployError, match=f"^the {name} ended with 3: why$"):
        stand_ins(**{which: "echo why; exit 3"})


def test_it_is_looked_after_a_run_whose_process_alone_has_ended(stand_ins, monkeypatch):
    """The SuperLink may have ended it: away, or with a clock ahead, for more than a minute; or it was killed."""
    asked: list[bool] = []
    servers: list[operator.Server] = []
    run = operator.Server.run

    def go_on(deployment, steps, tried=None):
        asked.append(tried is not None)
        if len(asked) == 4:
            servers[0].stop_requested.set()
        return len(asked) != 2  # the SuperLink is not up yet, and is asked again

    def started(server: operator.Server) -> None:
        servers.append(server)
        run(server)

    monkeypatch.setattr(operator, "go_on", go_on)
    monkeypatch.setattr(operator, "_ENDED", (0.1, 0.2))
    monkeypatch.setattr(operator.Server, "run", started)
    stand_ins(superexec="sleep 2 & wait; exec sleep 300")
    assert asked == [False, True, True, True]
