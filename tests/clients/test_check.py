"""`fcit client check`: what is wrong with a site is named, with what to do about it."""

import email.utils
import json
import shutil
import socket
import ssl
import threading
import time
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from clients.site import check as checking
from clients.site.tasks import OwnTasks
from fcit.config import site as sites
from fcit.errors import DataError
from fcit.models.backbone import TINY
from tests.helpers.superlink import free_port, make_certificates, make_key, run

APP = "a" * 64
OFF = SimpleNamespace(seconds=0.0)  # by which the door's clock is behind


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """A TLS server with a certificate for localhost and 127.0.0.1; ``(folder with ca.crt, port)``."""
    folder = tmp_path_factory.mktemp("door")
    make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    if secure.recv(1000):
                        date = email.utils.formatdate(time.time() - OFF.seconds, usegmt=True)
                        secure.sendall(f"HTTP/1.1 403 Forbidden\r\nDate: {date}\r\n\r\n".encode())
            except OSError:
                pass  # the client did not like the certificate

    threading.Thread(target=serve, daemon=True).start()
    yield folder, listening.getsockname()[1]
    listening.close()


@pytest.fixture
def site(tmp_path, door, monkeypatch):
    """``findings(**settings)`` of a site that is fine by default."""
    folder, port = door
    make_key(tmp_path / "site.key")
    (tmp_path / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    images = tmp_path / "data" / "datasets"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "1.png")
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "rose"}]
    rows = [{"id": 1, "image": "1.png", "conversations": turns}]
    (tmp_path / "data" / "train.json").write_text(json.dumps(rows))
    question = {"question_id": 1, "image": "1.png", "text": "Which?", "answer": "rose"}
    (tmp_path / "data" / "test.json").write_text(json.dumps([question]))
    monkeypatch.setattr(checking, "installed_app", lambda: APP)
    monkeypatch.delenv("FCIT_CACHE", raising=False)

    def findings(**settings):
        raw = {
            "superlink": f"localhost:{port}",
            "port": free_port(),
            "apps": [APP],
            "stream": "site",
            "tasks": [{"train": "train.json", "test": "test.json"}],
            **settings,
        }
        (tmp_path / "SITE.yaml").write_text(yaml.safe_dump(raw))
        return {what: (fine, detail) for what, fine, detail in checking.check(tmp_path / "SITE.yaml")}

    return tmp_path, findings


def wrong(found) -> dict[str, str]:
    return {what: detail for what, (fine, detail) in found.items() if not fine}


def test_a_site_that_is_fine(site):
    folder, findings = site
    found = findings()
    assert not wrong(found)
    expected = run("ssh-keygen", "-lf", folder / "site.key.pub").split()[1]
    assert expected in found["key"][1]
    assert "1 records" in found["task 0 train"][1]
    assert "TLSv1.3" in found["door: certificate"][1]


def test_a_mistake_in_the_file(site):
    _, findings = site
    assert "unknown key" in wrong(findings(wroker="resident"))["SITE.yaml"]


def test_key(site):
    folder, findings = site
    (folder / "site.key").chmod(0o644)
    assert "chmod 600" in wrong(findings())["key"]
    (folder / "site.key").chmod(0o600)
    (folder / "site.key").write_text("no key")
    assert "not an OpenSSH private key" in wrong(findings())["key"]
    (folder / "site.key").unlink()
    assert "not there" in wrong(findings())["key"]
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "site.key")
    assert "ecdsa" in wrong(findings())["key"]


def test_the_failing_step_on_the_way_to_the_door_is_named(site):
    folder, findings = site
    assert set(wrong(findings(superlink="no.such.host.invalid:9092"))) == {"door: name"}
    assert set(wrong(findings(superlink=f"127.0.0.1:{free_port()}"))) == {"door: connection"}
    (folder / "other").mkdir()
    make_certificates(folder / "other")
    assert "must be made by" in wrong(findings(ca="other/ca.crt"))["door: certificate"]
    assert "no certificate" in wrong(findings(ca="site.key"))["ca"]


def test_a_certificate_for_another_name(site, door, monkeypatch):
    _, findings = site
    address = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", door[1]))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
    assert "elsewhere.example" in wrong(findings(superlink=f"elsewhere.example:{door[1]}"))["door: certificate"]


def test_an_authority_that_has_run_out(site):
    folder, findings = site
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=old")
    then = datetime(2020, 1, 1)
    old = x509.CertificateBuilder(name, name, key.public_key(), 1, then, then + timedelta(days=9)).sign(key, SHA256())
    (folder / "old.crt").write_bytes(old.public_bytes(Encoding.PEM))
    assert "run out" in wrong(findings(ca="old.crt"))["ca"]


def test_apps(site):
    _, findings = site
    assert "none is pinned" in wrong(findings(apps=[]))["apps"]
    other = "b" * 64
    assert other in wrong(findings(apps=[other]))["apps"]
    assert APP in wrong(findings(apps=[other]))["apps"]


def test_the_hash_to_pin_is_that_of_the_installed_app(tmp_path):
    first = checking.installed_app()
    assert len(first) == 64
    assert checking.installed_app() == first


def test_data(site):
    folder, findings = site
    (folder / "data" / "datasets" / "1.png").write_bytes(b"")
    assert "1.png" in wrong(findings())["task 0 train"]
    (folder / "data" / "train.json").write_text("[{")
    assert "broken JSON" in wrong(findings())["task 0"]
    assert "no such folder" in wrong(findings(data_root="elsewhere"))["data"]
    (folder / "outside").mkdir()
    (folder / "data" / "link").symlink_to(folder / "outside")
    task = {"train": "train.json", "test": "test.json", "images": "link"}
    assert "leads out of" in wrong(findings(tasks=[task]))["task 0"]
    (folder / "data" / "saved").mkdir()  # its files could be links
    for name in ("saved", "saved#train", "rows.parquet"):
        assert "are text files" in wrong(findings(tasks=[{"train": name, "test": "test.json"}]))["task 0"]
        with pytest.raises(DataError, match="are text files"):
            OwnTasks(sites.load(folder / "SITE.yaml")).records(0, [0])


def test_model(site):
    folder, findings = site
    assert "config.json" in wrong(findings(model="models/none"))["model"]
    shutil.copytree(TINY / "llava", folder / "cut")
    assert "model" not in wrong(findings(model="cut"))
    (folder / "cut" / "model.safetensors").write_bytes(b"half")
    assert "cut short or damaged" in wrong(findings(model="cut"))["model"]


def test_home(site):
    folder, findings = site
    findings()
    (folder / "home").chmod(0o755)
    assert "chmod 700" in wrong(findings())["home"]
    (folder / "file").write_text("")
    assert "cannot be written" in wrong(findings(home="file/home"))["home"]


def test_a_file_that_is_not_there(tmp_path):
    ((what, fine, detail),) = checking.check(tmp_path / "nothere.yaml")
    assert (what, fine) == ("SITE.yaml", False)
    assert detail.endswith(
        "nothere.yaml: no such file; it comes with the folder that the operator hands over (`fcit deploy init`)"
    )


def test_a_key_that_stands_twice(site):
    folder, findings = site
    findings()
    text = (folder / "SITE.yaml").read_text()
    (folder / "SITE.yaml").write_text(f"{text}worker: process\nworker: resident\n")
    ((_, fine, detail),) = checking.check(folder / "SITE.yaml")
    assert not fine
    assert "'worker' stands twice, in line" in detail


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "tpu"}, "neither 'cpu' nor 'cuda[:n]'"),
        ({"address": "127.0.0.999"}, "must be a loopback address"),
        ({"superlink": "https://fcit.example.org:9092"}, "without https://"),
        ({"superlink": "fcit.example.org:99999"}, "1 to 65535"),
        ({"superlink": "fcit.example.org"}, "must be host:port"),
    ],
)
def test_a_value_that_would_fail_later(site, settings, words):
    _, findings = site
    assert words in wrong(findings(**settings))["SITE.yaml"]


def test_a_device_that_is_not_there(site, monkeypatch):
    _, findings = site
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch finds no CUDA GPU here" in wrong(findings(device="cuda:1"))["device"]
    assert "as ordered" in findings()["device"][1]


def test_a_benchmark_file_that_is_not_there(site):
    _, findings = site
    assert "no such file" in wrong(findings(benchmark="mine.yaml"))["benchmark"]


def test_a_data_root_that_is_a_file(site):
    _, findings = site
    assert "is a file" in wrong(findings(data_root="data/train.json"))["data"]


def test_a_port_that_is_taken(site):
    _, findings = site
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened on" in wrong(findings(port=port))["port"]


def test_a_wrong_clock(site, monkeypatch):
    _, findings = site
    assert "the door's" in findings()["clock"][1]
    monkeypatch.setattr(OFF, "seconds", 20.0)
    assert "s ahead of the door's; a site more than 5 s ahead" in wrong(findings())["clock"]
