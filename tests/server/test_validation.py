import dataclasses

import numpy as np
import pytest

from fcit.federation.records import ClientUpdate, TrainOrder
from server.validation import QUIET, Validator

ORDER = TrainOrder(
    "seed: 0", 0, 1, 3, "ab", [0], "0", {"a": np.zeros((1, 2), np.float32), "b": np.zeros(1, np.float32)}
)


def update(move: float = 1.0, order: TrainOrder = ORDER, **changes) -> ClientUpdate:
    """An honest update that moved by ``move`` in one step."""
    tensors = {"a": np.array([[move, 0]], np.float32), "b": np.zeros(1, np.float32)}
    base = ClientUpdate(order.stage, order.round, order.client, order.shard, order.subspace, 4, 1, 0.5, 0.1, tensors)
    return dataclasses.replace(base, **changes)


def with_tensor(name: str, value) -> dict[str, np.ndarray]:
    return {**update().tensors, name: value}


def test_an_honest_update():
    assert Validator().problem(ORDER, update(), 4) is None
    assert Validator().problem(ORDER, update(), None) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": 1}, "stage is 1, the order says 0"),
        ({"seconds": float("nan")}, "claims nan seconds"),
        ({"seconds": float("inf")}, "claims inf seconds"),
        ({"kept": -1}, "-1 bytes kept"),
        ({"round": 0}, "round is 0"),
        ({"client": 4}, "client is 4"),
        ({"shard": "cd"}, "shard is 'cd'"),
        ({"subspace": "1"}, "subspace is '1'"),
        ({"tensors": {"a": np.zeros((1, 2), np.float32)}}, "names differ .*b"),
        ({"tensors": with_tensor("c", np.zeros(1, np.float32))}, "names differ .*c"),
        ({"tensors": with_tensor("a", np.zeros((2, 1), np.float32))}, r"a is float32\(2, 1\)"),
        ({"tensors": with_tensor("a", np.zeros((1, 2), np.float64))}, "a is float64"),
        ({"tensors": with_tensor("a", np.zeros((1, 2), ">f4"))}, "a is >f4"),
        ({"tensors": with_tensor("b", np.array([np.nan], np.float32))}, "b holds values that are not finite"),
        ({"tensors": with_tensor("b", np.array([-np.inf], np.float32))}, "b holds values that are not finite"),
        ({"examples": 0}, "claims 0 records"),
        ({"examples": -5}, "claims -5 records"),
        ({"steps": 0}, "0 steps"),
        ({"examples": 5}, "claims 5 records, its shard has 4"),
    ],
)
def test_rejections(changes, reason):
    import re

    problem = Validator().problem(ORDER, update(**changes), 4)
    assert problem is not None and re.search(reason, problem)


def orders(count: int) -> list[TrainOrder]:
    return [dataclasses.replace(ORDER, client=client) for client in range(count)]


def accept(validator: Validator, count: int, move: float = 1.0) -> None:
    for order in orders(count):
        assert validator.problem(order, update(move, order), None) is None


def test_norm_rule_sleeps_until_twenty_were_accepted():
    validator = Validator()
    accept(validator, QUIET - 1)
    validator.close_round()
    assert validator.problem(ORDER, update(1e6), None) is None
    validator.drop_round()
    accept(validator, 1)
    validator.close_round()
    problem = validator.problem(ORDER, update(1e6), None)
    assert problem is not None and "times the median" in problem


def test_norm_rule_allows_ten_times_the_median():
    validator = Validator(history=[1.0] * QUIET)
    assert validator.problem(ORDER, update(9.99), None) is None
    assert validator.problem(ORDER, update(10.01), None) is not None


def test_norm_is_per_root_of_steps():
    validator = Validator(batch_size=1, history=[1.0] * QUIET)
    assert validator.problem(ORDER, update(19.9, steps=4), None) is None
    assert validator.problem(ORDER, update(20.1, steps=4), None) is not None


def test_norm_rule_looks_at_earlier_rounds_only():
    validator = Validator()
    accept(validator, QUIET + 5)
    assert validator.problem(ORDER, update(1e6), None) is None
    assert validator.history == []


def test_rejected_updates_do_not_count():
    validator = Validator(history=[1.0] * QUIET)
    validator.problem(ORDER, update(1e6), None)
    validator.close_round()
    assert validator.history == [1.0] * QUIET


def test_history_is_in_client_order():
    validator = Validator()
    for order in reversed(orders(3)):
        validator.problem(order, update(order.client + 1.0, order), None)
    validator.close_round()
    assert validator.history == [1.0, 2.0, 3.0]


def test_two_shards_of_one_client_count_twice():
    validator = Validator()
    for shard in ("ab", "cd"):
        order = dataclasses.replace(ORDER, shard=shard)
        validator.problem(order, update(order=order), None)
    validator.close_round()
    assert len(validator.history) == 2


def test_drop_round_forgets_the_attempt():
    validator = Validator()
    accept(validator, 3)
    validator.drop_round()
    validator.close_round()
    assert validator.history == []


def test_history_of_unchanged_updates():
    validator = Validator(history=[0.0] * QUIET)
    assert validator.problem(ORDER, update(0.0), None) is None
    assert validator.problem(ORDER, update(1.0), None) is not None
