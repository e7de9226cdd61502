"""A SuperNode that was killed is signed off by the next one, which then becomes Flower's own process."""

import inspect
import os
from pathlib import Path

import pytest
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.start_client_internal import start_client_internal

from clients.site import signoff
from tests.helpers.superlink import free_port, make_certificates, make_key

COMMAND = ["/bin/true", "--key", "site.key"]


@pytest.fixture
def became(monkeypatch) -> list[tuple[str, list[str]]]:
    """What the process has become."""
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: calls.append((path, arguments)))
    return calls


@pytest.fixture
def signed_off(monkeypatch) -> list[tuple[str, str, str, int]]:
    calls: list[tuple[str, str, str, int]] = []
    monkeypatch.setattr(signoff, "sign_off", lambda *told: calls.append(told) or True)
    return calls


def test_at_a_first_start_there_is_nobody_to_sign_off(tmp_path, became, signed_off):
    signoff.main(["door:1", "ca.crt", "site.key", str(tmp_path / "node.json"), *COMMAND])
    assert signed_off == []
    assert became == [(COMMAND[0], COMMAND)]


def test_the_node_that_was_let_in_last_is_signed_off(tmp_path, became, signed_off):
    signoff.remember(tmp_path / "node.json", 2**63 + 5)
    signoff.main(["door:1", "ca.crt", "site.key", str(tmp_path / "node.json"), *COMMAND])
    assert signed_off == [("door:1", "ca.crt", "site.key", 2**63 + 5)]
    assert became == [(COMMAND[0], COMMAND)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"node": null}', '{"node": "x"}'])
def test_a_damaged_file_is_no_node(tmp_path, text):
    (tmp_path / "node.json").write_text(text)
    assert signoff.remembered(tmp_path / "node.json") is None


def test_where_the_superlink_cannot_be_told_the_supernode_starts_all_the_same(tmp_path):
    make_key(tmp_path / "site.key")
    door, key = f"127.0.0.1:{free_port()}", str(tmp_path / "site.key")
    ca = inspect.getfile(pytest)  # a file that is no certificate
    assert not signoff.sign_off(door, ca, key, 7)
    assert not signoff.sign_off(door, ca, str(tmp_path / "missing.key"), 7)


@pytest.mark.parametrize("door", ["door.example.org:99999", "door example:1", "[::1:5"])
def test_an_address_that_cannot_be_is_left_to_the_supernode_to_name(tmp_path, door):
    make_key(tmp_path / "site.key")
    make_certificates(tmp_path)
    assert not signoff.sign_off(door, str(tmp_path / "ca.crt"), str(tmp_path / "site.key"), 7)


def test_the_line_with_the_number_is_found():
    lines = ["INFO :      Starting Flower SuperNode", "INFO :      SuperNode ID: 17"]
    assert signoff.admitted(lines) == 17
    assert signoff.admitted(lines[:1]) is None


def test_what_is_relied_on_of_flowers_private_parts():
    """Fails when another Flower does these things in another way; then read its fleet_http_connection."""
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == ["private_key", "public_key"]
    address = list(inspect.signature(FleetHttpClient.from_server_address).parameters)
    assert address[:4] == ["server_address", "insecure", "root_certificates", "interceptors"]
    assert list(inspect.signature(FleetHttpClient.DeactivateNode).parameters) == ["self", "request"]
    assert '"SuperNode ID: %s"' in Path(inspect.getfile(start_client_internal)).read_text()
