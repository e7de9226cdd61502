import numpy as np
import pytest

from fcit.io import trees


def test_round_trip():
    value = {
        "a": 1,
        "b": [1.5, None, "x", {"c": np.arange(3.0)}],
        "d": {},
        "e": [np.ones((2, 2), np.float32)],
        "f": True,
    }
    plain, tensors = trees.flatten(value, "root")
    assert set(tensors) == {"root/b/3/c", "root/e/0"}
    back = trees.restore(plain, tensors)
    assert back["b"][3]["c"].tolist() == [0, 1, 2]
    assert back["e"][0].dtype == np.float32
    assert {k: back[k] for k in "adf"} == {k: value[k] for k in "adf"}


def test_what_arithmetic_makes_of_an_array_without_dimensions_is_one_again():
    value = {"m": np.zeros((), np.float32) + np.float32(0.5), "share": np.float64(0.25)}
    assert not isinstance(value["m"], np.ndarray)
    plain, tensors = trees.flatten(value)
    assert (tensors["m"].dtype, tensors["m"].shape) == (np.float32, ())
    back = trees.restore(plain, tensors)
    assert (back["m"].item(), back["share"]) == (0.5, 0.25)
    assert isinstance(back["share"], float)  # numpy's float64 is one of Python's


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": {1, 2}}, {1: "a"}, {"a/b": 1}, {"$tensor": "x"}, {"a": (1, 2)}])
def test_what_cannot_be_saved_is_named(bad):
    with pytest.raises(TypeError, match=r"a|key"):
        trees.flatten(bad)


def test_a_missing_tensor_is_noticed():
    plain, _ = trees.flatten({"a": np.ones(1)})
    with pytest.raises(KeyError):
        trees.restore(plain, {})
