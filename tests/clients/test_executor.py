"""What a site's executor lets through, what it tells the server, and what it needs of Flower's private parts."""

import hashlib
import inspect
import json
import logging
import math
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
import yaml
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.runtime import run_clientapp

from clients.site import executor, logs, supervisor
from clients.site.at_hand import AtHand
from fcit.errors import EXIT_USAGE, DataError, Refused
from tests.helpers.commands import imported
from tests.helpers.supernode import SuperNode
from tests.helpers.waiting import LONG, wait

APP = b"the bytes of an app"
SECRET = b"s" * 32


def run_of(content: bytes) -> tuple[Run, Fab]:
    run = Run.create_empty(1)
    run.fab_hash = hashlib.sha256(content).hexdigest()
    return run, Fab(run.fab_hash, content, {})


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site whose executor serves a SuperNode in this process; ``work`` is what clients.app does."""
    work = {"do": lambda message, context: Message(message.content, reply_to=message)}

    class App:
        app = staticmethod(lambda message, context: work["do"](message, context))

    monkeypatch.setitem(sys.modules, "clients.app", App)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_bytes(SECRET)
    pinned, _ = run_of(APP)
    path = tmp_path / "SITE.yaml"
    with SuperNode(SECRET) as node:
        path.write_text(yaml.safe_dump({"apps": [pinned.fab_hash], "port": node.port}))
        logs.to_file("clients", tmp_path / "home" / "logs" / "site.log")
        doer = executor.Executor(path)

        def serve_one() -> None:
            token = doer._acquire()
            assert token
            doer._do(token)

        yield node, work, serve_one, path
    logging.getLogger("clients").handlers.clear()


def content() -> RecordDict:
    return RecordDict({"order": ConfigRecord({"text": "hello"})})


def log_of(path) -> str:
    return (path.parent / "home" / "logs" / "site.log").read_text()


def test_an_order_of_a_pinned_app_is_done(site):
    node, work, serve_one, path = site
    seen = {}

    def do(message, context):
        seen.update(node_config=context.node_config, run_config=context.run_config, text=message.content["order"])
        return Message(message.content, reply_to=message)

    work["do"] = do
    run = node.order(content(), "train", APP)
    serve_one()
    assert node.reply(run).metadata.message_type == "train"
    assert dict(seen["text"]) == {"text": "hello"}
    # What the operator's run configuration says does not reach the code: only the site's own file does.
    assert seen["node_config"] == {"site": str(path)}
    assert seen["run_config"] == {}


def test_an_unpinned_app_is_refused_and_nothing_of_it_is_run(site):
    node, work, serve_one, path = site
    work["do"] = lambda *_: pytest.fail("the order of an unpinned app was done")
    run = node.order(content(), "train", b"another app")
    serve_one()
    reply = node.reply(run)
    assert reply.has_error()
    assert reply.error.reason.split()[0] == "refused"
    assert "not pinned" in log_of(path)


def test_bytes_that_are_not_what_the_run_declares_are_refused(site):
    node, work, serve_one, _ = site
    work["do"] = lambda *_: pytest.fail("tampered bytes passed")
    run = node.order(content(), "train", b"other bytes", declared=run_of(APP)[0].fab_hash)
    serve_one()
    assert node.reply(run).error.reason.split()[0] == "refused"


def test_a_pin_added_while_the_site_runs_counts_for_the_next_order(site):
    node, _, serve_one, path = site
    first = node.order(content(), "train", b"new app")
    serve_one()
    assert node.reply(first).has_error()
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**raw, "apps": [*raw["apps"], run_of(b"new app")[0].fab_hash]}))
    second = node.order(content(), "train", b"new app")
    serve_one()
    assert not node.reply(second).has_error()


def test_a_kind_of_task_that_is_not_ours_does_not_block_the_site(site):
    node, _, serve_one, _ = site
    run = node.order(content(), "train", b"an agent", task=TaskType.AGENT_APP)
    serve_one()
    assert node.reply(run).error.reason.split()[0] == "refused"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("CANARY /data/patient-7.png"), "internal"),
        (DataError("CANARY"), "data"),
        (MemoryError("CANARY"), "memory"),
    ],
)
def test_of_an_error_only_a_code_and_a_reference_leave(site, error, code):
    node, work, serve_one, path = site

    def fail(*_):
        raise error

    work["do"] = fail
    run = node.order(content(), "train", APP)
    serve_one()
    word, reference = node.reply(run).error.reason.split()
    assert word == code
    text = log_of(path)
    assert f"[{reference}]" in text
    assert "CANARY" in text
    assert "Traceback" in text


def test_a_kind_of_order_that_the_app_does_not_know_tells_no_more(site, monkeypatch):
    node, _, serve_one, path = site
    monkeypatch.delitem(sys.modules, "clients.app")  # the real one
    run = node.order(content(), "train.CANARY", APP)
    serve_one()
    assert node.reply(run).error.reason.split()[0] == "internal"
    assert "CANARY" in log_of(path)


def test_refusals_are_in_the_audit_trail(site):
    node, _, serve_one, path = site
    run = node.order(content(), "train", b"another app")
    serve_one()
    node.reply(run)
    lines = [json.loads(line) for line in (path.parent / "home" / "audit.jsonl").read_text().splitlines()]
    assert [line["direction"] for line in lines] == ["in", "out"]


def test_a_broken_site_file_is_an_error_too(site):
    node, _, serve_one, path = site
    run = node.order(content(), "train", APP)
    path.write_text("apps: 7")
    serve_one()
    assert node.reply(run).error.reason.split()[0] == "config"


def test_only_the_holder_of_the_secret_gets_orders(site, tmp_path):
    node, _, _, path = site
    node.order(content(), "train", APP)
    (tmp_path / "home" / "secret").write_bytes(b"x" * 32)
    assert executor.Executor(path)._acquire() == ""
    assert "401" in log_of(path)


@pytest.fixture
def interruptible():
    """SIGINT raises, as the executor sees to; where the tests run in the background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_order_that_the_supernode_forgot_is_given_up(site, monkeypatch):
    node, work, serve_one, _ = site
    beats = threading.Event()

    def do(message, context):
        node.state.task_token_store.clear()
        node.state.task_token_to_task_id.clear()
        with pytest.raises(KeyboardInterrupt):
            assert executor._beat(client[0])
            beats.wait(LONG)  # the signal comes here
        return Message(message.content, reply_to=message)

    client = []
    connect = executor.connect
    monkeypatch.setattr(executor, "connect", lambda *a: client.append(connect(*a)) or client[-1])
    work["do"] = do
    run = node.order(content(), "train", APP)
    serve_one()
    assert not node.state.get_messages_legacy(run_ids=[run], is_reply=True)


@pytest.fixture
def serving(site, monkeypatch):
    """``serving(do)``: an executor that gets one order, does it with ``do`` and is then told to end."""
    _, _, _, path = site

    def serve(do) -> None:
        doer, tokens = executor.Executor(path), ["token"]

        def acquire() -> str:
            if not tokens:
                raise SystemExit(0)
            return tokens.pop()

        monkeypatch.setattr(doer, "_acquire", acquire)
        monkeypatch.setattr(doer, "_do", do)
        doer.serve()

    return serve


def test_a_file_says_that_an_order_is_at_hand_until_it_is_done(site, serving):
    mark = AtHand(site[3].parent / "home", pytest.fail)
    marked = []
    with pytest.raises(SystemExit):
        serving(lambda token: marked.append(bool(mark)))
    assert marked == [True]
    assert not mark


def test_the_file_stays_where_an_order_is_given_up(site, serving):
    """By which the supervisor sees that the SuperNode waits in vain."""

    def give_up(token: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serving(give_up)
    assert AtHand(site[3].parent / "home", pytest.fail)


def test_a_disk_that_takes_no_mark_is_told_of_once_and_ends_nothing(tmp_path):
    (tmp_path / "home").touch()  # no folder
    told: list[str] = []
    mark = AtHand(tmp_path / "home", told.append)
    for _ in range(2):
        mark.begin()
        mark.end()
    assert len(told) == 1
    assert "whether an order is at hand is not written down" in told[0]


@pytest.mark.parametrize(
    ("code", "lost"), [(0, False), (executor.EXIT_UNSENT, False), (EXIT_USAGE, False), (-9, True), (3, True)]
)
def test_an_order_is_lost_with_the_process_that_did_it(site, monkeypatch, code, lost):
    _, _, _, path = site
    path.write_text(path.read_text() + "worker: process\n")
    ended = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(executor.subprocess, "run", lambda *_, **__: ended)
    doer = executor.Executor(path)
    with pytest.raises(KeyboardInterrupt) if lost else nullcontext():
        doer._do("token")


@pytest.mark.parametrize(("idle", "pause"), [(0.0, 0.1), (0.5, 0.1), (5.0, 0.5), (10.0, 1.0), (math.inf, 1.0)])
def test_the_longer_no_order_has_come_the_less_often_one_is_looked_for(idle, pause):
    assert executor._pause(idle) == pytest.approx(pause)


def test_no_ray_at_a_site():
    packages = imported("clients.site.executor", "clients.site.supervisor", "clients.site.check", "clients.app")
    assert {"flwr", "torch"} <= packages
    assert "ray" not in packages


def test_what_is_relied_on_of_flowers_private_parts():
    """Fails when another Flower does these things in another way; then read its run_clientapp and run_superexec."""
    assert list(inspect.signature(run_clientapp.pull_task_input).parameters) == ["client"]
    assert list(inspect.signature(run_clientapp.push_message).parameters) == ["client", "message", "context"]
    output = list(inspect.signature(run_clientapp.push_task_output).parameters)
    assert output == ["client", "context", "sub_status", "details"]
    source = inspect.getsource(run_clientapp)
    assert "install_from_fab(" in source  # what pull_task_input must not do for us
    assert "install_from_fab" not in inspect.getsource(run_clientapp.pull_task_input)
    assert executor.HeartbeatSender(lambda: True).is_running is False
    kinds = {f.number for f in executor.AcquireTaskRequest.DESCRIPTOR.fields if f.name == "supported_task_types"}
    assert kinds
    assert executor._TASKS == (TaskType.CLIENT_APP, TaskType.AGENT_APP)
    with pytest.raises(Refused):
        executor.check_pinned([], *run_of(APP))
    assert supervisor.HALF_RECEIVED in inspect.getsource(start_client_internal)


@pytest.mark.usefixtures("interruptible")
def test_an_order_that_never_comes_whole_is_given_up():
    """As by Ctrl-C: the process ends, and is started again without the order."""
    with pytest.raises(KeyboardInterrupt), executor._given_up_after(0.2):
        threading.Event().wait(LONG)
    before = threading.active_count()
    with executor._given_up_after(LONG):  # ... and one that came is not
        assert threading.active_count() == before + 1
    wait(lambda: threading.active_count() == before, pause=0.02)
