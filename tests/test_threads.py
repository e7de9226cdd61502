"""Work on large arrays by several threads: the same results in the same order, and no error is lost."""

import os
import threading

import numpy as np
import pytest

from fcit.config import RunConfig
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.fedopt.fedavg import FedAvg
from fcit.io import threads
from fcit.privacy.clipping import clipped
from server.spill import digest


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    threads._pool.cache_clear()
    yield
    threads._pool().shutdown()
    threads._pool.cache_clear()


def test_results_are_in_the_order_of_the_items():
    gate = threading.Barrier(2, timeout=30)  # passed only if two threads work at a time

    def square(number: int) -> int:
        gate.wait()
        return number**2

    assert threads.each(square, [1, 2, 3, 4], threads.WORTH) == [1, 4, 9, 16]


def test_little_work_stays_where_it_is():
    assert threads.each(lambda _: threading.current_thread(), [0], threads.WORTH - 1) == [threading.current_thread()]


def test_an_error_of_one_item_is_raised():
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda number: 1 // number, [1, 0], threads.WORTH)


def test_tensors_are_worked_on_by_stretches(monkeypatch):
    monkeypatch.setattr(threads, "STRETCH", 3)
    flat = {"b": np.arange(7), "none": np.arange(0), "a": np.arange(3)}
    sums = threads.by_stretches(lambda name, stretch: int(flat[name][stretch].sum()), flat)
    assert list(sums.items()) == [("b", [0 + 1 + 2, 3 + 4 + 5, 6]), ("none", []), ("a", [3])]


def all_of_an_update() -> list[bytes]:
    """What is made of updates by several threads, to the bit."""
    rng = np.random.default_rng(0)
    old, *new = [{"a": rng.normal(size=(5, 7)).astype(np.float32), "one": np.float32(i).reshape(())} for i in range(3)]
    mean = Mean()
    for weight, tensors in enumerate(new, start=1):
        mean.add(tensors, weight)
    short, _ = clipped(new[0], old, 0.5)
    factors = {"x.lora_A.weight": old["a"], "x.lora_B.weight": new[0]["a"].T.copy()}
    aggregator = Aggregator(FedAvg(RunConfig()))
    group = aggregator.group("0", factors, {})
    for tensors, weight in ((factors, 1), ({name: 2 * tensor for name, tensor in factors.items()}, 2)):
        group.add(tensors, weight, {})
    made = [mean.result(), short, group.result()]
    assert aggregator.exactness["0"] > 0
    return [tensor.tobytes() for tensors in made for tensor in tensors.values()] + [digest(old).encode()]


@pytest.mark.parametrize("stretch", [4, 2**21])
def test_threads_change_no_bit(monkeypatch, stretch):
    monkeypatch.setattr(threads, "STRETCH", stretch)
    alone = all_of_an_update()
    monkeypatch.setattr(threads, "WORTH", 1)
    assert all_of_an_update() == alone


def test_a_forked_process_has_threads_of_its_own():
    assert threads.each(abs, [-1], threads.WORTH) == [1]
    child = os.fork()
    if not child:
        os._exit(0 if threads.each(abs, [-2], threads.WORTH) == [2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_value_is_read_ahead():
    started = [threading.Event() for _ in range(4)]

    def read(item: int) -> int:
        started[item].set()
        return item * 10

    values = threads.read_ahead(read, range(4))
    assert next(values) == 0
    assert started[1].wait(30)
    assert not started[2].is_set()
    assert list(values) == [10, 20, 30]


def test_an_error_while_reading_ahead_comes_in_its_turn():
    values = threads.read_ahead(lambda item: 1 // item, [1, 0])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_what_runs_beside_has_ended_after_the_body():
    told = threading.Event()
    seen: list[bool] = []
    with threads.beside(lambda: seen.append(told.wait(30)), threads.WORTH):
        told.set()
    assert seen == [True]


def test_an_error_beside_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), threads.beside(lambda: 1 // 0, threads.WORTH):
        pass
