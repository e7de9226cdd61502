"""Typed messages to Flower records and back: the only form in which anything is sent.

A message is one JSON text (plain fields) and one array record (tensors). Nothing is unpickled:
arrays travel in numpy's own format, read with pickling off. bfloat16 travels as an int16 view.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import types
import typing
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib import format as npy

from fcit.errors import CodecError
from fcit.io import bounded
from fcit.io.bounded import shown

T = TypeVar("T")
HEAD = 2**24  # characters of the JSON text; the values they stand for take some twenty times as many bytes
DIMENSIONS = 8  # of a tensor
_SHORT = "bfloat16"


def _to_bfloat16(value: np.ndarray) -> np.ndarray:
    """float32 to the upper 16 bits, rounded to nearest even, as int16."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded[np.isnan(value)] = 0x7FC0  # rounding would turn some NaNs into zeros
    return rounded.astype(np.uint16).view(np.int16)


def _from_bfloat16(value: np.ndarray) -> np.ndarray:
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode(record: Any, wire: str = "float32", memo: dict[int, tuple[np.ndarray, Array]] | None = None) -> RecordDict:
    """A typed record as a Flower ``RecordDict``.

    Args:
        wire: ``bfloat16`` shortens float32 tensors.
        memo: arrays made so far, by the identity of their tensor. Messages encoded with the same memo
            share the bytes of tensors they share. It keeps the tensors, so that no identity is used twice.
    """
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "tensors"}
    tensors = getattr(record, "tensors", {})
    short: set[str] = set()
    arrays = {}
    for name, tensor in tensors.items():
        if wire == _SHORT and tensor.dtype == np.float32:
            short.add(name)
        known = None if memo is None else memo.get(id(tensor))
        if known is None:
            sent = _to_bfloat16(tensor) if name in short else np.ascontiguousarray(tensor)
            known = tensor, Array(sent)
            if memo is not None:
                memo[id(tensor)] = known
        arrays[name] = known[1]
    head = {"type": type(record).__name__, "fields": fields, "names": list(tensors), "bfloat16": sorted(short)}
    return RecordDict({"head": ConfigRecord({"json": json.dumps(head)}), "tensors": ArrayRecord(arrays)})


def take_apart(content: RecordDict) -> tuple[str, dict[str, Array]]:
    """The JSON text and the arrays of an encoded message."""
    return str(content.config_records["head"]["json"]), dict(content.array_records["tensors"])


def put_together(head: str, arrays: dict[str, Array]) -> RecordDict:
    """The inverse of :func:`take_apart`."""
    return RecordDict({"head": ConfigRecord({"json": head}), "tensors": ArrayRecord(arrays)})


def size(content: RecordDict) -> int:
    """Bytes of a message as encoded: array payloads plus the JSON text."""
    total = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    return total + sum(len(str(v).encode()) for record in content.config_records.values() for v in record.values())


def _array(array: Array, name: str) -> np.ndarray:
    if array.stype != "numpy.ndarray":
        raise CodecError(f"tensor {name!r}: serialisation {shown(array.stype)} is not read (only numpy.ndarray)")
    file = io.BytesIO(array.data)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # noqa: BLE001  (numpy's parser may raise anything on hostile headers)
        raise CodecError(f"tensor {name!r} cannot be read: {shown(error)}") from None
    # Nothing is allocated before the header is known to fit the bytes received.
    plain = dtype.kind in "biuf" and len(shape) <= DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    plain = plain and math.prod(max(n, 1) for n in shape) < 2**40  # an empty array has a shape, too
    if not plain or dtype.itemsize * math.prod(shape) != len(array.data) - file.tell():
        raise CodecError(f"tensor {name!r}: {shown(dtype)}{shown(shape)} does not fit its {len(array.data)} bytes")
    flat = np.frombuffer(array.data, dtype=dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if kind is type(None):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(_fits(v, typing.get_args(kind)[0]) for v in value)
    if origin is dict:
        inner = typing.get_args(kind)[1]
        return isinstance(value, dict) and all(inner is Any or _fits(v, inner) for v in value.values())
    if kind is float:
        return (isinstance(value, float) and math.isfinite(value)) or _fits(value, int)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _head(text: str) -> Any:
    """The JSON of a message: strict, not nested deeply, every text whole.

    Raises:
        ValueError: anything else.
    """
    if len(text) > HEAD:
        raise ValueError(f"its {len(text):,} characters are more than {HEAD:,}")
    head = bounded.parse_json(text, unique=True)
    deep = bounded.depth_problem(head)
    if deep:
        raise ValueError(deep)
    if not bounded.is_text(text) or ("\\u" in text and not bounded.is_text(json.dumps(head, ensure_ascii=False))):
        raise ValueError("a text holds half a surrogate pair")
    return head


def decode(content: RecordDict, expected: type[T]) -> T:
    """Read a message as ``expected``, checking every field's type.

    Raises:
        CodecError: another type, missing or wrong fields, unreadable tensors.
    """
    try:
        head = _head(str(content.config_records["head"]["json"]))
        kind, fields, names, short = head["type"], head["fields"], head["names"], head["bfloat16"]
        record = content.array_records["tensors"]
    except (KeyError, TypeError, ValueError) as error:
        raise CodecError(f"message has no readable head: {shown(error)}") from None
    if kind != expected.__name__:
        raise CodecError(f"expected {expected.__name__}, got {shown(kind)}")
    hints = typing.get_type_hints(expected)
    wanted = {name for name in hints if name != "tensors"}
    if not isinstance(fields, dict) or set(fields) != wanted:
        raise CodecError(f"{kind}: its fields are not {', '.join(sorted(wanted))}")
    if not _fits(names, list[str]) or not _fits(short, list[str]):
        raise CodecError(f"{kind}: tensor names must be a list of texts")
    for name in sorted(wanted):
        if not _fits(fields[name], hints[name]):
            raise CodecError(f"{kind}.{name}: {shown(fields[name])} is not {hints[name]}")
    if "tensors" in hints:
        if len(record) != len(names) or set(record) != set(names):
            raise CodecError(f"{kind}: tensors do not match the names declared")
        tensors = {name: _array(record[name], name) for name in names}
        for name in set(short) & set(tensors):
            if tensors[name].dtype != np.int16:
                raise CodecError(f"tensor {name!r}: declared bfloat16, got {tensors[name].dtype}")
            tensors[name] = _from_bfloat16(tensors[name])
        fields = {**fields, "tensors": tensors}
    return expected(**fields)
