"""Kinds of values that several keys, or several readers of a key, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

#: How pictures become pixels: see :mod:`fcit.data.images.pixels`.
Way = Literal["official", "upright"]
#: Who decodes answers: see :mod:`fcit.models.decoding`.
Decoder = Literal["auto", "static", "transformers"]


def _written(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


#: Beside values that are words, ``on`` or ``off`` among them: YAML reads these two as booleans.
WORDS = BeforeValidator(_written)

#: Whether something is compiled; auto: where it pays.
Compile = Annotated[Literal["auto", "on", "off"], WORDS]


def _micro_batch(value: Any) -> Any:
    if value is None or value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be a whole number from 1 on, auto, or null for the whole batch")


#: A number of records, ``auto``, or None for the whole batch (one sentence for all that is wrong with it).
MicroBatch = Annotated[int | Literal["auto"] | None, PlainValidator(_micro_batch)]


def _epochs(value: Any) -> Any:
    if all(type(n) is int and n >= 1 for n in (value if isinstance(value, list) and value else [value])):
        return value
    raise ValueError("must be a whole number from 1 on, or a list of them, one for each task, e.g. [1, 3, 1]")


#: A number of epochs, or one for each task.
Epochs = Annotated[int | list[int], PlainValidator(_epochs)]


def epochs_of(epochs: int | list[int], tasks: Sequence[int]) -> int:
    """The number of epochs on records of one task; of several tasks, whose numbers must be equal, theirs."""
    return epochs if isinstance(epochs, int) else max(epochs[task] for task in tasks)


def _ranks(value: Any) -> Any:
    """None, a rank, shares by rank (whose keys are texts in JSON), or a rank for each client."""
    if isinstance(value, dict) and value:
        shares = {int(r) if isinstance(r, str) and r.isdecimal() else r: s for r, s in value.items()}
        numbers = all(type(s) in (int, float) and s > 0 for s in shares.values())
        if all(map(_is_rank, shares)) and numbers and abs(sum(shares.values()) - 1) < 1e-6:
            return {rank: float(share) for rank, share in sorted(shares.items())}
    elif value is None or _is_rank(value) or (isinstance(value, list) and value and all(map(_is_rank, value))):
        return value
    raise ValueError(
        "must be a rank from 1 on, a share for each rank that sum to 1, e.g. {4: 0.5, 8: 0.3, 16: 0.2}, a list with a "
        "rank for each client, or null"
    )


def _unchanged(value: Any) -> Any:
    """Written as it is: of these kinds pydantic 2 takes a mapping, whose keys JSON has as texts, for another one."""
    return value


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


#: The ranks of the clients' adapters: one, shares of clients by rank, one for each client, or None for that of the run.
Ranks = Annotated[int | dict[int, float] | list[int] | None, PlainValidator(_ranks), PlainSerializer(_unchanged, Any)]


def _batch_size(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be a whole number from 1 on, or auto")


#: A number of questions, or ``auto``.
BatchSize = Annotated[int | Literal["auto"], PlainValidator(_batch_size)]


def _checkpointing(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError("must be true, false or auto")


#: A switch, or ``auto``.
Checkpointing = Annotated[bool | Literal["auto"], PlainValidator(_checkpointing)]
