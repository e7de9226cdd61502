"""Typed messages to Flower records and back: the only form in which anything is sent.

A message is one JSON text (plain fields, and the layout of its tensors) and a few byte arrays that hold the tensors
(:mod:`fcit.federation.packing`). Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fcit import __version__
from fcit.errors import CodecError
from fcit.federation.messages import TrainOrder, is_learnt
from fcit.federation.packing import pack, unpack
from fcit.io import bounded
from fcit.io.bounded import shown

T = TypeVar("T")
#: Version of the form of messages. 1, until 0.1.0: an array in numpy's format for each tensor.
WIRE = 2
#: Characters of the JSON text of an order; the values they stand for take some twenty times as many bytes. Layouts of
#: 256 subspaces of a model of 7B fit.
HEAD = 2**24
#: The same of a reply, and bytes of its tensors as numpy will hold them: sites are not trusted as the server is, and
#: many names may be given to one array that came once. An update of a billion numbers fits.
HEAD_OF_REPLY, MOST_OF_REPLY = 2**23, 2**32


def encode_all(records: Sequence[Any], wire: str = "float32") -> list[RecordDict]:
    """Typed records as Flower ``RecordDict``; messages share the bytes of tensors that they share.

    Args:
        wire: ``bfloat16`` shortens float32 tensors; ``int8`` does so too, and those of a model to be trained more.

    Raises:
        CodecError: a tensor that cannot be sent.
    """
    learnt = is_learnt if all(isinstance(record, TrainOrder) for record in records) else lambda name: False
    packed = pack([getattr(record, "tensors", {}) for record in records], wire, learnt)
    contents = []
    for record, (layout, pieces) in zip(records, packed, strict=True):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "tensors"}
        head = {"wire": WIRE, "type": type(record).__name__, "fields": fields, "tensors": layout}
        contents.append(put_together(json.dumps(head), pieces))
    return contents


def encode(record: Any, wire: str = "float32") -> RecordDict:
    """One record as :func:`encode_all` does it."""
    return encode_all([record], wire)[0]


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


def _head(text: str, most: int) -> Any:
    """The JSON of a message: strict, not nested deeply, every text whole.

    Raises:
        ValueError: anything else.
    """
    if len(text) > most:
        raise ValueError(f"its {len(text):,} characters are more than {most:,}")
    head = bounded.parse_json(text, unique=True)
    deep = bounded.depth_problem(head)
    if deep:
        raise ValueError(deep)
    if not bounded.is_text(text) or ("\\u" in text and not bounded.is_text(json.dumps(head, ensure_ascii=False))):
        raise ValueError("a text holds half a surrogate pair")
    return head


def decode(content: RecordDict, expected: type[T], writable: bool = False, reply: bool = False) -> T:
    """Read a message as ``expected``, checking every field's type.

    Args:
        writable: tensors are the caller's own, to be written to or handed to torch; otherwise they are read-only
            views of the message.
        reply: it is from a site, and less is read than of an order; what is more is refused before it is made.

    Raises:
        CodecError: another wire format or type, missing or wrong fields, unreadable tensors.
    """
    try:
        head = _head(str(content.config_records["head"]["json"]), HEAD_OF_REPLY if reply else HEAD)
        wire, kind, fields = head.get("wire", 1), head["type"], head["fields"]
        pieces = content.array_records["tensors"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CodecError(f"message has no readable head: {shown(error)}") from None
    if wire != WIRE:
        raise CodecError(
            f"the message is in wire format {shown(wire)}, fcit {__version__} here reads {WIRE} only: the server and "
            "all sites need one version of fcit; update the older side, then pin the new app (`fcit deploy update`)"
        )
    if kind != expected.__name__:
        raise CodecError(f"expected {expected.__name__}, got {shown(kind)}")
    hints = typing.get_type_hints(expected)
    wanted = {name for name in hints if name != "tensors"}
    if not isinstance(fields, dict) or set(fields) != wanted:
        raise CodecError(f"{kind}: its fields are not {', '.join(sorted(wanted))}")
    for name in sorted(wanted):
        if not _fits(fields[name], hints[name]):
            raise CodecError(f"{kind}.{name}: {shown(fields[name])} is not {hints[name]}")
    try:
        tensors = unpack(head.get("tensors"), pieces, MOST_OF_REPLY if reply else sys.maxsize)
        if writable:
            tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    except MemoryError:
        raise CodecError(f"{kind}: its tensors do not fit into memory") from None
    if "tensors" in hints:
        fields = {**fields, "tensors": tensors}
    elif tensors:
        raise CodecError(f"{kind} has no tensors, got {len(tensors)}")
    return expected(**fields)
