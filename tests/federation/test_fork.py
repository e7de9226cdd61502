"""The fork engine with a client that needs no model: what an order can do to its process, and what becomes of it."""

import os
import signal
import threading
from contextlib import closing

import numpy as np
import psutil
import pytest
from flwr.app import Array, Message
from flwr.clientapp import ClientApp

from fcit import config as configuration
from fcit.config.schema import Fork
from fcit.errors import ConfigError, RunError
from fcit.federation import codec
from fcit.federation.engines.fork import Auto, ForkGrid
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.nodes import CLIENT_RAISED, FIRST_NODE
from fcit.runs import forking
from tests.helpers.waiting import LONG

app = ClientApp()


@app.query("do")
def do(message: Message, context: object) -> Message:
    """What the order's text says, with the number of its process as reply."""
    wanted, arrays = codec.take_apart(message.content)
    if wanted == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if wanted == "wait":
        signal.pause()
    if wanted == "memory":
        raise MemoryError("no room")
    if wanted == "config":
        raise ConfigError("backbone.model: not here")
    if wanted == "fail":
        raise ValueError("one bad client")
    return Message(codec.put_together(str(os.getpid()), arrays), reply_to=message)


def settings(**federation):
    raw = {"name": "x", "benchmark": "fcit-mini-short", "fork": {"workers": 2, "attempts": 2}, "federation": federation}
    raw["backbone"] = {"threads": 1}
    return configuration.parse(raw)


def order(text: str = "", client: int = 0, tensors: dict[str, np.ndarray] | None = None) -> Message:
    arrays = {name: Array(tensor) for name, tensor in (tensors or {}).items()}
    content = codec.put_together(text, arrays)
    return Message(content, dst_node_id=FIRST_NODE + client, message_type="query.do", group_id="")


def texts(replies) -> list[str]:
    return [codec.take_apart(reply.content)[0] for reply in replies]


@pytest.fixture
def grid(tmp_path):
    """With its workers, after the first order."""
    with closing(ForkGrid(app, 8, settings(), tmp_path)) as made:
        list(made.send_and_receive([order()]))
        yield made


def test_the_first_order_is_carried_out_before_workers_are_forked(tmp_path):
    with closing(ForkGrid(app, 8, settings(), tmp_path)) as grid:
        first = grid.pids
        assert texts(grid.send_and_receive([order()])) == [str(first[0])]
        assert len(grid.pids) == 2
        assert os.getpid() not in grid.pids
        workers = texts(grid.send_and_receive([order(client=k) for k in range(8)]))
        assert set(workers) <= {str(pid) for pid in grid.pids}


def test_tensors_come_back_as_they_were(grid):
    rng = np.random.default_rng(0)
    sent = {"a": rng.normal(size=(300, 1000)).astype(np.float32), "none": np.zeros((0, 3), np.int16)}
    [reply] = grid.send_and_receive([order(tensors=sent)])
    _, arrays = codec.take_apart(reply.content)
    assert {name: array.data for name, array in arrays.items()} == {name: Array(t).data for name, t in sent.items()}


def test_an_error_of_a_client_is_its_reply(grid):
    [reply] = grid.send_and_receive([order("fail")])
    assert reply.error.code == CLIENT_RAISED
    assert reply.error.reason.startswith("ValueError: one bad client")


def test_an_error_of_the_run_is_raised_as_it_was(grid):
    with pytest.raises(ConfigError, match=r"^backbone.model: not here$"):
        list(grid.send_and_receive([order("config")]))


def test_an_error_of_the_run_in_the_first_order_too(tmp_path):
    with closing(ForkGrid(app, 8, settings(), tmp_path)) as grid, pytest.raises(ConfigError, match="not here"):
        list(grid.send_and_receive([order("config")]))


def test_a_worker_that_was_killed_is_replaced(grid):
    before = grid.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert len(texts(grid.send_and_receive([order(client=k) for k in range(4)]))) == 4
    assert not set(before) & set(grid.pids)


@pytest.mark.parametrize(("text", "reason"), [("die", "was killed by signal 9"), ("memory", "out of memory: no room")])
def test_an_order_that_always_costs_its_worker_stops_the_run(text, reason, grid):
    with pytest.raises(RunError, match=rf"client 3 lost its worker 2 times \(fork.attempts\), last: {reason}"):
        list(grid.send_and_receive([order(text, client=3)]))


def test_a_first_order_without_enough_memory_is_tried_again_and_told(tmp_path):
    with (
        closing(ForkGrid(app, 8, settings(), tmp_path)) as grid,
        pytest.raises(RunError, match=r"lost its worker 2 times \(fork.attempts\), last: out of memory: no room"),
    ):
        list(grid.send_and_receive([order("memory", client=3)]))


def test_workers_have_one_thread_each(tmp_path):
    config = settings()
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"threads": 2})})
    with pytest.raises(ConfigError, match=r"backbone\.threads is 2; set backbone\.threads=1"):
        ForkGrid(app, 8, config, tmp_path)
    assert Auto.of(config) is InlineGrid


def test_what_takes_too_long_is_given_up_and_its_worker_replaced(grid):
    before = set(grid.pids)
    assert not list(grid.send_and_receive([order("wait")], timeout=0.1))
    assert grid.busy == 0
    assert len(before & set(grid.pids)) == 1
    assert len(list(grid.send_and_receive([order(client=k) for k in range(4)]))) == 4


def test_a_first_order_that_takes_too_long_is_given_up(tmp_path):
    with closing(ForkGrid(app, 8, settings(), tmp_path)) as grid:
        [before] = grid.pids
        assert not list(grid.send_and_receive([order("wait")], timeout=0.1))
        assert not psutil.pid_exists(before)
        assert texts(grid.send_and_receive([order()])) != [str(before)]


def test_no_process_is_left(grid):
    workers = [psutil.Process(pid) for pid in grid.pids]
    grid.close()
    assert not psutil.wait_procs(workers, timeout=LONG)[1]


def test_the_end_of_the_process_that_forks_is_told(grid, tmp_path):
    forking = psutil.Process(grid.pids[0]).parent()
    forking.kill()
    with pytest.raises(RunError, match=r"the process that workers are forked from was killed by signal 9; resume"):
        list(grid.send_and_receive([order("die")]))


def test_a_model_that_cannot_be_loaded(tmp_path):
    grid = ForkGrid(app, 8, settings(), tmp_path)
    with closing(grid), pytest.raises(RunError, match="the process that loads the model was killed by signal 9"):
        list(grid.send_and_receive([order("die")]))


# ---------------------------------------------------------------------- where it can be used


def on(device: str):
    return settings().model_copy(
        update={"backbone": settings().backbone.model_copy(update={"device": device})},
    )


@pytest.mark.parametrize(
    ("patched", "device", "sentence"),
    [
        (("sys.platform", "darwin"), "cpu", "'fork' needs Linux, and this is darwin"),
        (None, "cuda:1", "'fork' cannot share a GPU, and backbone.device is 'cuda:1'"),
        (("torch.cuda.is_initialized", lambda: True), "cpu", "cannot be used in a process that has used a GPU"),
    ],
)
def test_where_it_is_refused(patched, device, sentence, monkeypatch, tmp_path):
    if patched:
        monkeypatch.setattr(*patched)
    with pytest.raises(ConfigError, match=sentence):
        ForkGrid(app, 8, on(device), tmp_path)
    assert Auto.of(on(device)) is InlineGrid


@pytest.mark.parametrize(
    ("cores", "orders", "threads", "engine"),
    [(2, 5, 1, ForkGrid), (1, 5, 1, InlineGrid), (8, 1, 1, InlineGrid), (8, 5, 2, InlineGrid)],
)
def test_auto_forks_where_it_is_safe_and_faster(cores, orders, threads, engine, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    assert Auto.of(settings(clients_per_round=orders).model_copy(update={"fork": Fork()})) is engine


def test_workers_by_default(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    assert forking.workers(settings(clients_per_round=3).model_copy(update={"fork": Fork()})) == 3
