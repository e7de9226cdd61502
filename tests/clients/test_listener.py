"""Another user of the machine who takes the SuperNode's port gets no order done."""

import os
import socket

import httpx
import pytest
import yaml

from clients.site import executor
from clients.site.listener import OwnSuperNode, listeners
from fcit.errors import Refused
from tests.helpers.supernode import SuperNode

SECRET = b"s" * 32


@pytest.fixture
def port():
    """A port on 127.0.0.1 that this process listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_the_kernel_says_whose_socket_it_is(port):
    assert listeners("127.0.0.1", port) == {os.getuid()}
    assert listeners("127.0.0.2", port) == set()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_socket_of_all_addresses_counts(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as taken:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind((address, 0))
        taken.listen()
        assert listeners("127.0.0.1", taken.getsockname()[1]) == {os.getuid()}


def test_a_connection_is_no_listener(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert listeners("127.0.0.1", connection.getsockname()[1]) == set()


def test_a_system_that_does_not_tell_is_not_trusted(tmp_path, port):
    with pytest.raises(OSError, match="tcp"):
        listeners("127.0.0.1", port, tables=tmp_path)


class Calls:
    """Takes the place of the request, and may change the world while it is under way."""

    def __init__(self, during=lambda: None) -> None:
        self.count, self.during = 0, during

    def __call__(self, context) -> str:
        self.count += 1
        self.during()
        return "answer"


def test_what_this_user_s_process_answers_is_passed_on(port):
    assert OwnSuperNode(f"127.0.0.1:{port}").intercept(None, Calls()) == "answer"


def test_another_user_is_sent_nothing(port, monkeypatch):
    calls = Calls()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(Refused, match=r"not by this site's SuperNode \(user 12345\); choose another `port`"):
        OwnSuperNode(f"127.0.0.1:{port}").intercept(None, calls)
    assert calls.count == 0


def test_an_answer_does_not_count_if_the_port_has_changed_hands(port, monkeypatch):
    calls = Calls(lambda: monkeypatch.setattr(os, "getuid", lambda: 12345))
    with pytest.raises(Refused, match="is held by user"):
        OwnSuperNode(f"127.0.0.1:{port}").intercept(None, calls)
    assert calls.count == 1


def test_a_supernode_that_is_not_up_yet_is_waited_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # held, and not listened on
        calls = Calls()
        with pytest.raises(httpx.ConnectError):
            OwnSuperNode(f"127.0.0.1:{free.getsockname()[1]}").intercept(None, calls)
    assert calls.count == 0


def test_the_executor_ends_where_another_user_has_taken_the_port(tmp_path, monkeypatch, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_bytes(SECRET)
    path = tmp_path / "SITE.yaml"
    monkeypatch.setattr(executor, "resolve_path", lambda name: None)  # the app, slow to import and not needed
    with SuperNode(SECRET) as node:
        path.write_text(yaml.safe_dump({"port": node.port}))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        before = executor.signal.getsignal(executor.signal.SIGTERM), executor.signal.getsignal(executor.signal.SIGINT)
        try:
            assert executor.main([str(path)]) == Refused.exit_code
        finally:
            executor.signal.signal(executor.signal.SIGTERM, before[0])
            executor.signal.signal(executor.signal.SIGINT, before[1])
    assert "not by this site's SuperNode" in capsys.readouterr().err
