"""Tensors of messages as few byte arrays: Flower registers every array of a message by itself, at a row or two each.

A piece is plain bytes, little-endian, one tensor after the other. The layout, which travels in the message's JSON
head, names type, shape and piece of every tensor. Where a tensor lies in its piece follows from the layout alone:
larger numbers first, then by name, without gaps. So there are no offsets that could overlap or lead out of a piece,
and every tensor lies at a multiple of its item size.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array

from fcit.errors import CodecError
from fcit.federation.formats import MOST_CODE, blocks, from_bfloat16, from_blocks, to_bfloat16, to_blocks
from fcit.io.bounded import shown
from fcit.io.trees import Tensors

#: Type, shape and piece of every tensor, by its name.
Layout = dict[str, tuple[str, list[int], str]]

#: Serialisation of a piece, as Flower's arrays name it.
RAW = "raw"
#: Bytes of a piece that holds more than one tensor. Flower cuts arrays into parts of 5 MiB anyhow, and holds a piece
#: three times for a moment while it puts it together again.
PIECE = 4 * 5 * 2**20
#: Tensors of a message: several times those of a model of 7B with 64 subspaces.
MOST = 100_000
DIMENSIONS = 8  # of a tensor
BFLOAT16 = "bfloat16"
#: Codes of one byte, after them the scales of their blocks as bfloat16 (:mod:`fcit.federation.formats`).
BLOCKS = "int8 blocks"
#: What a tensor may be made of; bfloat16 and blocks of int8, which numpy lacks, stand for float32.
TYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", *(f"{u}int{8 * n}" for u in ("", "u") for n in (1, 2, 4, 8)), "float16", "float32", "float64")
}
_SHORT = np.dtype("<u2")
_STORED = {**TYPES, BFLOAT16: _SHORT, BLOCKS: np.dtype("int8")}


def _place(name: str, kind: str) -> tuple[int, str]:
    """By this the tensors of a piece are ordered."""
    return -_STORED[kind].itemsize, name


# ---------------------------------------------------------------------- packing


def pack(
    messages: Sequence[Tensors], wire: str, learnt: Callable[[str], bool] = lambda name: False
) -> list[tuple[Layout, dict[str, Array]]]:
    """Layout and pieces of each of several messages that are sent together.

    A tensor that several messages hold under one name (the same object) is packed once, with all others that just
    these messages hold: Flower then stores its bytes once. The layout's length as JSON does not depend on which
    other messages there are.

    Args:
        wire: ``bfloat16`` shortens float32 tensors; ``int8`` those which are ``learnt`` more, by their names.

    Raises:
        CodecError: a tensor of another type than :data:`TYPES`.
    """
    holders: dict[tuple[str, int], list[int]] = {}
    for index, tensors in enumerate(messages):
        for name, tensor in tensors.items():
            holders.setdefault((name, id(tensor)), []).append(index)
    groups: dict[tuple[int, ...], Tensors] = {}
    for (name, _), holding in holders.items():
        groups.setdefault(tuple(holding), {})[name] = messages[holding[0]][name]
    places: list[dict[str, tuple[str, str]]] = [{} for _ in messages]
    pieces: list[dict[str, Array]] = [{} for _ in messages]
    number = itertools.count()
    for indices, group in groups.items():
        kinds = {name: _kind(name, tensor, wire, learnt) for name, tensor in group.items()}
        for names in _split(group, kinds):
            key = f"{next(number):06}"
            data = b"".join(_bytes(group[name], kinds[name]) for name in names)
            array = Array("uint8", (len(data),), RAW, data)
            for index in indices:
                pieces[index][key] = array
                places[index] |= {name: (kinds[name], key) for name in names}
    layouts = [
        {name: (place[name][0], list(tensor.shape), place[name][1]) for name, tensor in tensors.items()}
        for tensors, place in zip(messages, places, strict=True)
    ]
    return list(zip(layouts, pieces, strict=True))


def _kind(name: str, tensor: np.ndarray, wire: str, learnt: Callable[[str], bool]) -> str:
    if not isinstance(tensor, np.ndarray | np.generic):
        raise CodecError(f"tensor {name!r}: a {type(tensor).__name__} cannot be sent, numpy's arrays can")
    kind = str(tensor.dtype.name)
    if kind not in TYPES:
        raise CodecError(f"tensor {name!r}: {kind} cannot be sent (allowed: {', '.join(TYPES)})")
    if kind != "float32" or wire == "float32":
        return kind
    return BLOCKS if wire == "int8" and learnt(name) else BFLOAT16


def _size(count: int, kind: str) -> int:
    """Bytes of so many numbers in a piece."""
    return count * _STORED[kind].itemsize + (blocks(count) * _SHORT.itemsize if kind == BLOCKS else 0)


def _split(group: Tensors, kinds: dict[str, str]) -> Iterator[list[str]]:
    """Names of the tensors of each piece, in their order in it."""
    names: list[str] = []
    room = PIECE
    for name in sorted(group, key=lambda name: _place(name, kinds[name])):
        size = _size(group[name].size, kinds[name])
        if names and size > room:
            yield names
            names, room = [], PIECE
        names.append(name)
        room -= size
    if names:
        yield names


def _bytes(tensor: np.ndarray, kind: str) -> memoryview | bytes:
    """Its numbers as they lie in a piece; a view where that is possible."""
    if kind == BLOCKS:
        if not np.isfinite(tensor).all():
            raise CodecError("a tensor with numbers that are not finite has no scale; choose federation.wire: float32")
        codes, scales = to_blocks(tensor.reshape(-1))
        return codes.tobytes() + to_bfloat16(scales).tobytes()
    stored = to_bfloat16(tensor) if kind == BFLOAT16 else np.ascontiguousarray(tensor, dtype=_STORED[kind])
    return stored.reshape(-1).view(np.uint8).data


# ---------------------------------------------------------------------- unpacking


def unpack(layout: Any, pieces: Mapping[str, Array], most: int = sys.maxsize) -> Tensors:
    """The tensors of a message, in the layout's order; read-only views of the pieces, except those that were shortened.

    Args:
        most: bytes that all of them may take.

    Raises:
        CodecError: the layout is not one, does not account for every byte of every piece, or is of more bytes.
    """
    if not isinstance(layout, dict) or len(layout) > MOST:
        raise CodecError(f"tensors: {shown(layout)} does not name at most {MOST:,} tensors")
    inside: dict[str, list[str]] = {key: [] for key in pieces}
    for name, entry in layout.items():
        problem = _problem(entry, inside)
        if problem:
            raise CodecError(f"tensor {name[:80]!r}: {problem}")
        inside[entry[2]].append(name)
    size = sum(math.prod(shape) * _held(kind).itemsize for kind, shape, _ in layout.values())
    if size > most:
        raise CodecError(f"tensors of {size:,} bytes, at most {most:,} are read")
    views = {name: view for key, names in inside.items() for name, view in _views(layout, names, key, pieces[key])}
    return {name: views[name] for name in layout}


def _held(kind: str) -> np.dtype:
    """Type of a tensor once it is unpacked."""
    return TYPES["float32"] if kind in (BFLOAT16, BLOCKS) else TYPES[kind]


def _problem(entry: Any, pieces: Mapping[str, Any]) -> str:
    """What is wrong with a line of a layout; empty if nothing is."""
    if not isinstance(entry, list) or len(entry) != 3:
        return f"{shown(entry)} is not type, shape and piece"
    kind, shape, piece = entry
    if not isinstance(kind, str) or kind not in _STORED:
        return f"type {shown(kind)} is not read (allowed: {', '.join(_STORED)})"
    if not isinstance(shape, list) or len(shape) > DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        return f"{shown(shape)} is not a shape of at most {DIMENSIONS} dimensions"
    if math.prod(max(n, 1) for n in shape) >= 2**40:  # an empty array has a shape, too
        return f"shape {shown(shape)} is too large"
    if not isinstance(piece, str) or piece not in pieces:
        return f"piece {shown(piece)} is not there"
    return ""


def _views(layout: Layout, names: list[str], key: str, piece: Array) -> Iterator[tuple[str, np.ndarray]]:
    if piece.stype != RAW:
        raise CodecError(f"piece {key[:80]!r}: serialisation {shown(piece.stype)} is not read (only {RAW})")
    ordered = sorted(names, key=lambda name: _place(name, layout[name][0]))
    counts = [math.prod(layout[name][1]) for name in ordered]
    sizes = [_size(n, layout[name][0]) for n, name in zip(counts, ordered, strict=True)]
    if not names or sum(sizes) != len(piece.data):
        few = ", ".join(repr(name[:80]) for name in ordered[:3]) or "no tensor"
        raise CodecError(f"piece {key[:80]!r}: its tensors ({few}, ...) do not fit its {len(piece.data)} bytes")
    begin = 0
    for name, count, size in zip(ordered, counts, sizes, strict=True):
        kind, shape, _ = layout[name]
        view = np.frombuffer(piece.data, dtype=_STORED[kind], count=count, offset=begin if count else 0)
        if kind == BLOCKS:
            view = _of_blocks(view, np.frombuffer(piece.data[begin + count : begin + size], _SHORT), name)
        yield name, (from_bfloat16(view) if kind == BFLOAT16 else view).reshape(shape)
        begin += size


def _of_blocks(codes: np.ndarray, short: np.ndarray, name: str) -> np.ndarray:
    scales = from_bfloat16(short)
    if not np.isfinite(scales).all() or (scales < 0).any() or (codes < -MOST_CODE).any():
        raise CodecError(f"tensor {name[:80]!r}: its codes or scales are not those of blocks of int8")
    return from_blocks(codes, scales)
