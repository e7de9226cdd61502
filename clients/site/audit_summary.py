"""A message in a few words for the audit trail: run and client, size, hash, and the kinds of values it holds."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fcit.federation import codec
from fcit.federation.packing import DIMENSIONS
from fcit.models.layout import GATE, A, B, is_projector

_SHORT, _FEW = 64, 32  # characters of a text and entries of a mapping that are written out


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(content: RecordDict) -> str:
    """SHA-256 of an encoded message: plain values and tensors with their names, types, shapes and bytes."""
    total = hashlib.sha256()
    for key, record in sorted(content.items()):
        for name, value in sorted(record.items()):
            if isinstance(value, Array):
                total.update(_json({"at": [key, name, value.dtype, list(value.shape), value.stype]}).encode())
                total.update(hashlib.sha256(value.data).digest())
            else:
                total.update(_json({"at": [key, name], "value": repr(value)}).encode())
    return total.hexdigest()


def _group(name: str) -> str:
    """The kind of tensor that a name stands for: names themselves would be too many."""
    head, slash, rest = name.partition("/")
    if slash:
        return f"{head}/{rest.partition('/')[0]}" if head == "constant" else head
    if is_projector(name):
        return "projector"
    return next((kind.strip(".") for kind in (A, B, GATE) if kind in name), name.partition(".")[0])


def _tensors(layout: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """Tensors as declared; what is not declared as it should be is still counted in the message's bytes."""
    groups = sorted({_text(_group(name)) for name in layout})
    return {
        "count": len(layout),
        # As declared, but not more numbers than bytes.
        "numbers": min(sum(map(_numbers, layout.values())), sum(len(array.data) for array in arrays.values())),
        "groups": groups if len(groups) <= _FEW else f"{len(groups)} groups",
    }


def _numbers(entry: Any) -> int:
    """Numbers of a tensor, from its line in the layout: type, shape and piece."""
    shape = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
    if not isinstance(shape, list) or len(shape) > DIMENSIONS or not all(isinstance(n, int) and n >= 0 for n in shape):
        return 0
    return math.prod(shape)


def _text(value: str) -> str:
    return value if len(value) <= _SHORT else f"{value[: _SHORT // 2]}... ({len(value)} characters)"


def _plain(value: Any) -> Any:
    """A field's value, or its length if it is long."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and len(value) <= _FEW and not any(isinstance(v, dict | list) for v in value.values()):
        return {_text(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list) and len(value) <= _FEW and all(isinstance(v, int) for v in value):
        return value
    return f"{len(value)} entries" if isinstance(value, dict | list) else type(value).__name__


def _read(content: RecordDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain fields and layout of the tensors, as far as they can be read; the message may come from anywhere."""
    try:
        head = json.loads(str(content.config_records["head"]["json"]))
        fields, layout = head["fields"], head.get("tensors")
        named = {str(k): v for k, v in fields.items() if k != "config"} | {"type": str(head["type"])}
        return named, layout if isinstance(layout, dict) else {}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}, {}


def describe(message: Message) -> dict[str, Any]:
    """The entry of the audit trail for a message."""
    if message.has_error():
        reason = str(message.error.reason)
        return {
            "kind": _text(message.metadata.message_type),
            "bytes": len(reason.encode()),
            "sha256": hashlib.sha256(reason.encode()).hexdigest(),
            "holds": {"error": _text(reason)},
        }
    content = message.content
    fields, layout = _read(content)
    where = {name: _plain(fields.pop(name, None)) for name in ("run", "stage", "round", "client")}
    arrays = {n: a for record in content.values() if isinstance(record, ArrayRecord) for n, a in record.items()}
    holds = {_text(name): _plain(value) for name, value in sorted(fields.items())[:_FEW]}
    if arrays or layout:
        holds["tensors"] = _tensors(layout, arrays)
    return {
        **where,
        "kind": _text(message.metadata.message_type),
        "bytes": codec.size(content),
        "sha256": digest(content),
        "holds": holds,
    }
