"""Nested values as one JSON value and flat tensors: what methods and clients remember, made savable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from fcit.io.bounded import shown

#: Arrays by name: the tensors of a subspace, an update, a checkpoint.
Tensors = dict[str, np.ndarray]
_MARK = "$tensor"


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in nested dicts and lists."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from arrays(inner)


def flatten(value: Any, prefix: str = "") -> tuple[Any, Tensors]:
    """Dicts (text keys), lists, JSON values and arrays as JSON with references, and the arrays.

    Of numpy's numbers integers and truth values become Python's. Others are arrays, as they began: arithmetic with
    arrays without dimensions gives numbers.

    Raises:
        TypeError: anything else, naming the place.
    """
    if isinstance(value, np.bool_ | np.integer):
        value = value.item()
    if isinstance(value, np.generic) and not isinstance(value, str | float):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise TypeError(
                f"{prefix or 'value'}: an array of {value.dtype} cannot be saved (allowed: numbers of 64 bits)"
            )
        return {_MARK: prefix}, {prefix: value}
    if isinstance(value, dict):
        plain: dict[str, Any] = {}
        tensors: Tensors = {}
        for key, inner in value.items():
            if not isinstance(key, str) or key == _MARK:
                raise TypeError(f"{prefix or 'value'}: key {key!r} must be a text other than {_MARK!r}")
            step = key.replace("~", "~0").replace("/", "~1")  # as in a JSON pointer (RFC 6901)
            plain[key], more = flatten(inner, f"{prefix}/{step}" if prefix else step)
            tensors |= more
        return plain, tensors
    if isinstance(value, list):
        parts = [flatten(inner, f"{prefix}/{i}") for i, inner in enumerate(value)]
        return [plain for plain, _ in parts], {k: v for _, more in parts for k, v in more.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value, {}
    raise TypeError(f"{prefix or 'value'}: {type(value).__name__} cannot be saved (allowed: JSON values and arrays)")


def json_of(value: dict[str, Any], what: str) -> dict[str, Any]:
    """JSON values as they come out of a message.

    Raises:
        TypeError: they come out as others, or not at all.
    """
    try:
        read = json.loads(json.dumps(value, allow_nan=False))
        why = "" if read == value else f": {shown(value)} would be read as {shown(read)}"
    except (TypeError, ValueError) as error:
        read, why = {}, f": {error}"
    if why:
        raise TypeError(f"{what} must give JSON values, with texts as keys, lists for tuples and finite numbers{why}")
    return dict(read)


def restore(plain: Any, tensors: Tensors) -> Any:
    """The inverse of :func:`flatten`.

    Raises:
        KeyError: a tensor is missing.
    """
    if isinstance(plain, dict):
        if set(plain) == {_MARK}:
            return tensors[plain[_MARK]]
        return {key: restore(inner, tensors) for key, inner in plain.items()}
    if isinstance(plain, list):
        return [restore(inner, tensors) for inner in plain]
    return plain


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
