"""What `fcit deploy init` and its relatives leave behind."""

import ipaddress
import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fcit.cli import main
from fcit.config import site
from fcit.deploy import app
from fcit.deploy.deployment import Deployment
from fcit.deploy.init import add, init, renew, site_file, update
from fcit.deploy.steps import DeployError, Steps
from fcit.errors import ConfigError
from tests.deploy.conftest import plan


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path):
    found = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName)), set(found.get_values_for_type(x509.IPAddress))


def test_the_server_certificate_has_the_names_it_is_reached_by(prepared):
    loopback = ipaddress.ip_address("127.0.0.1")
    assert names(prepared.certificate) == ({"localhost"}, {ipaddress.ip_address("127.0.0.2"), loopback})


@pytest.mark.parametrize(
    "host,dns,ips",
    [
        ("fcit.example.org", {"fcit.example.org", "localhost"}, {"127.0.0.1"}),
        ("2001:db8::1", {"localhost"}, {"2001:db8::1", "127.0.0.1"}),
        ("localhost", {"localhost"}, {"127.0.0.1"}),
    ],
)
def test_names_of_other_hosts(tmp_path, host, dns, ips):
    from fcit.deploy import certificates

    deployment = Deployment.plan(tmp_path / "d", host, 9092, None, 9091)
    certificates.authority(deployment, Steps())
    certificates.server(deployment, Steps())
    assert names(deployment.certificate) == (dns, {ipaddress.ip_address(ip) for ip in ips})


def test_the_server_certificate_is_the_authority_s(prepared):
    ca, server = certificate(prepared.ca), certificate(prepared.certificate)
    server.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3600)
    key = serialization.load_pem_private_key(prepared.certificate_key.read_bytes(), None)
    assert key.public_key() == server.public_key()


def test_keys_are_for_their_owner_only(prepared):
    secret = [prepared.ca_key, prepared.certificate_key, *prepared.path.glob("sites/*/site.key")]
    assert len(secret) == 4
    for file in [*secret, *prepared.path.glob("sites/*/SITE.yaml")]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for folder in (prepared.path, prepared.ca_key.parent, prepared.site("0"), prepared.home):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_every_site_has_a_key_of_its_own(prepared):
    public = []
    for name in ("0", "1"):
        private = serialization.load_ssh_private_key((prepared.site(name) / "site.key").read_bytes(), None)
        assert isinstance(private.curve, ec.SECP384R1)
        public.append(serialization.load_ssh_public_key(prepared.public_key(name).read_bytes()))
        assert private.public_key() == public[-1]
    assert public[0] != public[1]


def test_what_a_site_is_handed(prepared):
    folder = prepared.site("1")
    there = {file.name for file in folder.iterdir()}
    assert there == {"SITE.yaml", "ca.crt", "site.key", "start.sh", "fcit-site.service", "README.txt"}
    loaded = site.load(folder / "SITE.yaml")
    assert loaded.name == "1"
    assert loaded.superlink == f"127.0.0.2:{prepared.port}"
    assert loaded.ca == str(folder / "ca.crt")
    assert loaded.key == str(folder / "site.key")
    assert (folder / "ca.crt").read_bytes() == prepared.ca.read_bytes()
    assert os.access(folder / "start.sh", os.X_OK)
    assert len((folder / "README.txt").read_text().splitlines()) == 3


def test_what_stands_in_a_site_file_as_a_comment_is_the_default(prepared):
    text = site_file(prepared, "0", "0" * 64)
    settings = [
        line.removeprefix("# ")
        for line in text.split("\n# With stream: site")[0].splitlines()
        if line.startswith("# ") and line[2:].split(":")[0] in site.Site.model_fields
    ]
    assert len(settings) == len(site.Site.model_fields) - 7
    default = site.Site.model_validate({})
    for key, value in yaml.safe_load("\n".join(settings)).items():
        assert getattr(default, key) == value, key


def test_the_example_of_own_tasks_is_one(prepared, tmp_path):
    head, example = site_file(prepared, "0", "0" * 64).split("# With stream: site, your own tasks in order:\n")
    tasks = "\n".join(line.removeprefix("# ") for line in example.splitlines())
    (tmp_path / "SITE.yaml").write_text(f"{head}\nstream: site\n{tasks}")
    assert site.load(tmp_path / "SITE.yaml").tasks[0].scorer == "exact"


def test_the_pinned_hash_is_that_of_the_app(prepared):
    pinned = site.load(prepared.site("0") / "SITE.yaml").apps
    for file in prepared.app.rglob("*.py"):
        os.utime(file, (1, 1))
    assert pinned == [app.fab_hash(prepared, Steps())]


def test_the_app_is_thin(prepared):
    assert app.differs(prepared) == []
    assert {path.name for path in prepared.app.iterdir()} == {"pyproject.toml", "server", "clients"}


def test_dry_run_shows_and_does_nothing(tmp_path, capsys):
    init(plan(tmp_path / "d"), 2, Steps(dry=True))
    assert not (tmp_path / "d").exists()
    shown = capsys.readouterr().out
    for piece in ("$ openssl req -x509", "$ openssl x509 -req", "$ ssh-keygen", "$ flwr build", "sites/1/SITE.yaml"):
        assert piece in shown


def test_nothing_is_overwritten(prepared, capsys):
    before = {file: file.read_bytes() for file in prepared.path.rglob("*") if file.is_file()}
    assert main(["deploy", "init", str(prepared.path), "--clients", "2", "--host", "127.0.0.2"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="site 1 has a key already"):
        add(prepared, ["1"], Steps())
    assert before == {file: file.read_bytes() for file in prepared.path.rglob("*") if file.is_file()}


def test_all_mistakes_are_named_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Deployment.plan(tmp_path / "a b", "https://x:1", 0, "nowhere", 70000)
    text = str(caught.value)
    for piece in ("a b", "https://x:1", "--port 0", "--bind 'nowhere'", "--superlink-port 70000"):
        assert piece in text


def test_a_folder_that_is_no_deployment(tmp_path, capsys):
    assert main(["deploy", "status", str(tmp_path)]) == 2
    assert "fcit deploy init" in capsys.readouterr().err


def test_a_failed_command_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["deploy", "init", str(tmp_path / "d"), "--clients", "1", "--host", "h"]) == 1
    assert "openssl is not installed" in capsys.readouterr().err


@pytest.fixture
def own(tmp_path):
    deployment = plan(tmp_path / "d")
    init(deployment, 1, Steps())
    return deployment


def test_a_site_more_a_new_certificate_and_a_new_app(own):
    ca = own.ca.read_bytes()
    add(own, ["7"], Steps())
    assert own.sites() == ["0", "7"]
    assert site.load(own.site("7") / "SITE.yaml").apps == site.load(own.site("0") / "SITE.yaml").apps

    old = certificate(own.certificate)
    renew(own, Steps())
    assert own.ca.read_bytes() == ca
    assert certificate(own.certificate).serial_number != old.serial_number
    certificate(own.certificate).verify_directly_issued_by(certificate(own.ca))

    pinned = app.fab_hash(own, Steps())
    with (own.app / "server" / "app.py").open("a") as file:
        file.write("# changed\n")
    (own.app / "server" / "left.py").write_text("")
    assert app.differs(own) == ["server/app.py", "server/left.py"]
    assert app.fab_hash(own, Steps()) != pinned
    update(own, Steps())
    assert app.differs(own) == []
    assert app.fab_hash(own, Steps()) == pinned


@pytest.mark.parametrize("broken", ["the authority's key is offline", "openssl cannot sign"])
def test_without_the_authority_s_key_the_certificate_in_force_stays(own, broken):
    def there() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in own.certificate.parent.glob("*") if file.suffix != ".srl"}

    before = there()
    if broken == "openssl cannot sign":
        own.ca_key.write_text("no key")
    else:
        own.ca_key.unlink()
    with pytest.raises(DeployError, match="is not there" if "offline" in broken else "openssl failed"):
        renew(own, Steps())
    assert there() == before


def test_a_new_certificate_is_for_its_owner_only_and_leaves_nothing_beside_it(own):
    before = {file.name for file in own.certificate.parent.iterdir()}
    renew(own, Steps())
    assert {file.name for file in own.certificate.parent.iterdir()} == before
    assert {stat.S_IMODE(file.stat().st_mode) for file in (own.certificate, own.certificate_key)} == {0o600}
    key = serialization.load_pem_private_key(own.certificate_key.read_bytes(), None)
    assert key.public_key() == certificate(own.certificate).public_key()


def test_units_are_valid(prepared, tmp_path):
    """What systemd says about the units, where there is one."""
    import shutil

    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    unit = (prepared.path / "fcit-server.service").read_text()
    site = (prepared.site("0") / "fcit-site.service").read_text()
    for line in ("Restart=always", "RestartSec=20", "StartLimitIntervalSec=0"):
        assert line in unit
        assert line in site
    assert "KillMode=mixed" in unit  # a run must not be told to end by itself
    assert "KillMode=control-group" in site
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", prepared.path / "fcit-server.service"], capture_output=True, text=True
    )
    assert "fcit-server.service" not in done.stderr, done.stderr
