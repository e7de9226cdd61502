"""Tensors in few byte arrays: nothing lies outside, nothing overlaps, every byte is accounted for."""

import numpy as np
import pytest
from flwr.app import Array

from fcit.errors import CodecError
from fcit.federation import packing
from fcit.federation.packing import RAW, pack, unpack
from tests.helpers.cases import check_each

MIXED = {
    "z": np.arange(5, dtype=np.uint8),
    "flag": np.array([True, False, True]),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "scalar": np.array(0.25),
    "none": np.zeros((0, 4), dtype=np.float32),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "big": np.array([1.0, 2.0], dtype=">f4"),
}


def packed(tensors, wire="float32"):
    """Layout as it comes out of JSON, and pieces."""
    ((layout, pieces),) = pack([tensors], wire)
    return {name: list(entry) for name, entry in layout.items()}, pieces


def piece(size: int, serialisation: str = RAW) -> dict[str, Array]:
    return {"000000": Array("uint8", (size,), serialisation, bytes(size))}


def test_types_shapes_and_order_come_back():
    back = unpack(*packed(MIXED))
    assert list(back) == list(MIXED)
    for name, tensor in MIXED.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype.newbyteorder("="), tensor.shape)
        assert np.array_equal(back[name], tensor)
        assert back[name].ctypes.data % tensor.dtype.itemsize == 0


def test_no_byte_is_sent_that_is_no_number():
    _, pieces = packed(MIXED)
    assert sum(len(p.data) for p in pieces.values()) == sum(t.nbytes for t in MIXED.values())


def test_no_tensors():
    assert packed({}) == ({}, {})
    assert unpack({}, {}) == {}


def test_empty_tensors_alone():
    back = unpack(*packed({"a": np.zeros((0, 3)), "b": np.zeros((2, 0), np.int8)}))
    assert [(t.shape, t.dtype) for t in back.values()] == [((0, 3), np.float64), ((2, 0), np.int8)]


def test_one_tensor_under_two_names():
    tensor = np.ones(3, np.float32)
    back = unpack(*packed({"a": tensor, "b": tensor}))
    assert [t.tolist() for t in back.values()] == [[1, 1, 1]] * 2


def test_pieces_are_of_bounded_size(monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 100)
    tensors = {f"t{n}": np.arange(n).astype(np.uint8) for n in (40, 50, 30, 300, 60)}
    layout, pieces = packed(tensors)
    sizes = [len(p.data) for p in pieces.values()]
    assert sizes == [30, 300, 90, 60]
    assert {n: t.tolist() for n, t in unpack(layout, pieces).items()} == {n: t.tolist() for n, t in tensors.items()}


@pytest.mark.parametrize("value", [0.5, [1.0], None])
def test_what_is_no_array_is_named(value):
    with pytest.raises(CodecError, match=f"tensor 'a': a {type(value).__name__} cannot be sent"):
        packed({"a": value})


def test_what_cannot_be_sent_is_named():
    with pytest.raises(CodecError, match=r"tensor 'a': object cannot be sent \(allowed: bool, int8"):
        pack([{"a": np.array([{}], dtype=object)}], "float32")


LAYOUTS = {
    "no mapping": [],
    "no entry": {"a": None},
    "short": {"a": ["float32", [4]]},
    "long": {"a": ["float32", [4], "000000", 0]},
    "object": {"a": ["object", [4], "000000"]},
    "text": {"a": ["<U4", [4], "000000"]},
    "structure": {"a": [[["x", "<f4"]], [4], "000000"]},
    "byte order": {"a": [">f4", [4], "000000"]},
    "type is a number": {"a": [4, [4], "000000"]},
    "negative": {"a": ["float32", [-4], "000000"]},
    "twice negative": {"a": ["float32", [-2, -2], "000000"]},
    "true": {"a": ["float32", [True, 4], "000000"]},
    "fraction": {"a": ["float32", [4.0], "000000"]},
    "shape is a number": {"a": ["float32", 4, "000000"]},
    "dimensions": {"a": ["float32", [1] * 8 + [4], "000000"]},
    "huge": {"a": ["float32", [2**62], "000000"]},
    "overflows": {"a": ["float32", [2**32, 2**32], "000000"]},
    "empty and huge": {"a": ["float32", [4], "000000"], "b": ["float32", [0, 2**63], "000000"]},
    "digits": {"a": ["float32", [10**4000], "000000"]},
    "no such piece": {"a": ["float32", [4], "000001"]},
    "piece is a number": {"a": ["float32", [4], 0]},
    "piece is a list": {"a": ["float32", [4], []]},
    "nothing in the piece": {},
    "too few bytes": {"a": ["float32", [5], "000000"]},
    "bytes left over": {"a": ["float32", [3], "000000"]},
    "twice the same bytes": {"a": ["float32", [4], "000000"], "b": ["float32", [4], "000000"]},
}


def test_layouts_that_lie():
    assert unpack({"a": ["float32", [4], "000000"]}, piece(16))["a"].tolist() == [0, 0, 0, 0]

    def check(layout) -> None:
        with pytest.raises(CodecError) as caught:
            unpack(layout, piece(16))
        assert len(str(caught.value)) < 500

    check_each(LAYOUTS, check)


def test_too_many_tensors(monkeypatch):
    monkeypatch.setattr(packing, "MOST", 3)
    with pytest.raises(CodecError, match="at most 3"):
        unpack({f"{n}": ["bool", [0], "000000"] for n in range(4)}, piece(0))


def test_other_serialisations_are_refused():
    for name in ("numpy.ndarray", "pickle", ""):
        with pytest.raises(CodecError, match="serialisation"):
            unpack({"a": ["float32", [4], "000000"]}, piece(16, name))


def test_one_array_under_many_names_makes_no_more_than_is_allowed():
    """Flower gives an array that came once to every name that stands for it; as bfloat16 each would become a copy."""
    pieces = {f"{n}": piece(2**20)["000000"] for n in range(100)}
    layout = {f"t{n}": ["bfloat16", [2**19], f"{n}"] for n in range(100)}
    with pytest.raises(CodecError, match="tensors of 209,715,200 bytes, at most 1,000,000 are read"):
        unpack(layout, pieces, 1_000_000)
