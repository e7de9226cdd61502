import re

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


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": {1, 2}}, {1: "a"}, {"$tensor": "x"}, {"a": (1, 2)}])
def test_what_cannot_be_saved_is_named(bad):
    with pytest.raises(TypeError, match=r"a|key"):
        trees.flatten(bad)


@pytest.mark.parametrize("odd", [np.array(["a"]), np.ones(1, np.complex128), np.ones(1, np.longdouble)])
def test_arrays_that_no_file_of_tensors_holds_are_named(odd):
    with pytest.raises(TypeError, match=r"^memory/words: an array of .* cannot be saved"):
        trees.flatten({"memory": {"words": odd}})


def test_keys_may_hold_what_separates_places():
    value = {"a/b": np.ones(1), "a": {"b": np.zeros(1)}, "a~1b": np.full(1, 2.0), "~": {"0": np.full(1, 3.0)}}
    plain, tensors = trees.flatten(value)
    assert len(tensors) == 4
    back = trees.restore(plain, tensors)
    assert (back["a/b"], back["a"]["b"], back["a~1b"], back["~"]["0"]) == (1, 0, 2, 3)


def test_numbers_of_numpys_that_count_are_pythons():
    plain, tensors = trees.flatten({"seen": np.int64(3), "over": np.bool_(True)})
    assert (plain, tensors) == ({"seen": 3, "over": True}, {})
    assert type(plain["over"]) is bool


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": np.int64(1)}, "not JSON serializable"),
        ({"a": float("nan")}, "Out of range float"),
        ({0: "a"}, "{0: 'a'} would be read as {'0': 'a'}"),
        ({"a": (1, 2)}, r"{'a': (1, 2)} would be read as {'a': [1, 2]}"),
    ],
)
def test_what_messages_change_is_said(value, why):
    assert trees.json_of({"a": [1, None, {"b": 0.5}]}, "brief") == {"a": [1, None, {"b": 0.5}]}
    with pytest.raises(TypeError, match=f"^brief must give JSON values.*{re.escape(why)}"):
        trees.json_of(value, "brief")


def test_a_missing_tensor_is_noticed():
    plain, _ = trees.flatten({"a": np.ones(1)})
    with pytest.raises(KeyError):
        trees.restore(plain, {})
