import numpy as np

from fcit.config import RunConfig
from fcit.fedopt import base
from fcit.fedopt.base import Mean
from fcit.fedopt.fedavg import FedAvg


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_weighted_mean_by_hand():
    mean = Mean()
    mean.add({"a": f32(1, 2), "b": f32(10)}, 1)
    mean.add({"a": f32(5, 6), "b": f32(20)}, 3)
    result = mean.result()
    assert mean.weight == 4
    assert result["a"].tolist() == [4.0, 5.0]
    assert result["b"].tolist() == [17.5]
    assert result["a"].dtype == np.float32


def test_sums_are_kept_in_float64():
    mean = Mean()
    for value in (2.0**24, 1.0, 1.0, -(2.0**24)):  # in float32 the ones would be lost
        mean.add({"a": f32(value)}, 1)
    assert mean.result()["a"].tolist() == [0.5]


def test_updates_are_not_changed():
    mean, value = Mean(), f32(1)
    mean.add({"a": value}, 2)
    mean.add({"a": value}, 2)
    assert value.tolist() == [1.0]


def test_empty():
    assert Mean().result() == {}


def test_fedavg_takes_the_mean():
    mean = {"a": f32(3)}
    assert FedAvg(RunConfig()).step({"a": f32(1)}, mean, {})["a"].tolist() == [3.0]


def test_pieces_add_up_to_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(7, 5)).astype(np.float32) for _ in range(3)] + [np.ones((5, 7), np.float32).T]
    whole, pieces = Mean(), Mean()
    for mean, piece in ((whole, 2**16), (pieces, 3)):
        monkeypatch.setattr(base, "PIECE", piece)
        for weight, value in enumerate(values, start=1):
            mean.add({"a": value}, weight)
    expected = sum(value.astype(np.float64) * weight for weight, value in enumerate(values, start=1)) / 10
    assert whole.result()["a"].tobytes() == expected.astype(np.float32).tobytes()
    assert pieces.result()["a"].tobytes() == whole.result()["a"].tobytes()
