"""Updates in few bytes: what a client sends of the tensors it trained under ``federation.wire`` and ``top_k``.

A client sends the difference to what it received, not the values: small steps do not vanish beside large numbers, and
numbers that are not sent count as not moved. All trained tensors of an update, one after the other by name, are one
vector. With d the difference and e what earlier updates lacked, the client sends Q(d + e) and keeps

    e <- d + e - Q(d + e)

which is error feedback: Seide et al. (2014, "1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs", Interspeech) for quantisation, Stich et al. (2018, arXiv 1809.07599) for sparse
updates, Karimireddy et al. (2019, arXiv 1901.09847, algorithm 1) for any Q with ||Q(x) - x||^2 <= (1 - delta) ||x||^2.
Q is such a one: of the vector it keeps the ``top_k`` share of largest absolute value (delta >= top_k), and of these
bfloat16 or int8 in blocks (:mod:`fcit.federation.formats`). Their proofs are about every worker in every round; a
client that is sampled now and then sends what it owes when it is sampled again.

What is owed (the residual) belongs to one stage and one subspace: in the next stage it is dropped, because a method may
have replaced the numbers that it is about, and because it would carry one task into the subspace of another. It is part
of the client's memory, so an absent client keeps it, and a round that is repeated begins from the same one. Where the
server makes new factors in every round (``factors: svd``) nothing is owed.

The server adds what it reads to its own tensors, which no order's rounding touches: "preserved central model"
(Philippenko and Dieuleveut, 2021, arXiv 2102.12528). Orders need no feedback therefore, and the server keeps nothing.

An update names no tensors: their names and shapes, and so all lengths, follow from the order and the configuration. It
holds, under ``thin/``,

    values   float32 ``(k,)``, with bfloat16 numbers that are ones already, with int8 codes
    scales   float32 ``(blocks(k),)`` of the codes
    mask     uint8, a bit for each number of the vector, most significant first; or where that is shorter
    indices  uint32 ``(k,)``, ascending
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fcit import registry
from fcit.config import RunConfig
from fcit.errors import CodecError, FCITError
from fcit.federation.formats import BYTES, MOST_CODE, blocks, from_bfloat16, from_blocks, to_bfloat16, to_blocks
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.io.trees import Tensors

#: Prefix of what stands for the trained tensors in an update.
THIN = "thin/"
_VALUES, _SCALES, _MASK, _INDICES = (f"{THIN}{name}" for name in ("values", "scales", "mask", "indices"))
_KINDS = {"float32": np.float32, "bfloat16": np.float32, "int8": np.int8}


def wire_of(config: RunConfig, pooled: str) -> str:
    """The number format of a run's messages.

    float32 whatever ``federation.wire`` is where one participant has all data and so no wire: ``pooled`` of the method,
    or ``setting: centralised``.
    """
    return "float32" if pooled or config.centralised else config.federation.wire


@dataclass(frozen=True)
class Thin:
    """The form of a run's updates.

    Args:
        wire: number format.
        top_k: share of the numbers that is sent; None: all.
        feedback: whether what was not sent is owed.
    """

    wire: str
    top_k: float | None = None
    feedback: bool = True

    @classmethod
    def of(cls, config: RunConfig, pooled: str) -> Thin | None:
        """The form that a configuration asks for; None where tensors are sent as they are.

        That is so in float32 without ``top_k``, where one participant has all data and no wire (:func:`wire_of`), and
        with secure aggregation, whose sums have a format of their own.
        """
        wire, top_k = config.federation.wire, config.federation.top_k
        if (wire == "float32" and top_k is None) or pooled or config.centralised or config.privacy.secure:
            return None
        return cls(wire, top_k, registry.resolve("factors", config.factors).stepwise)

    @property
    def remembers(self) -> bool:
        """Whether clients keep something between their orders."""
        return self.feedback

    @property
    def late(self) -> float:
        """The share of a difference that may be left to later updates, at most.

        With ``top_k`` all of it; else what rounding leaves: 1 / 254 of the largest number of a block, 1 / 512 of a
        number, and with all that was owed less than 1 / 128.
        """
        return 0.0 if not self.feedback else 1.0 if self.top_k is not None else 1 / 128

    def count(self, size: int) -> int:
        """Numbers sent of a vector of so many, at least one."""
        return size if self.top_k is None else min(size, max(1, round(self.top_k * size)))

    @property
    def bytes(self) -> float:
        """Bytes of an update for each number of the tensors it is about, without head and names."""
        if self.top_k is None:
            return BYTES[self.wire]
        return self.top_k * BYTES[self.wire] + min(1 / 8, 4 * self.top_k)

    # ------------------------------------------------------------------ at the client

    def sent(self, order: TrainOrder, trained: Tensors, owed: dict[str, Any]) -> Tensors:
        """What is sent instead of the ``trained`` tensors, float32 of the order's shapes.

        Args:
            owed: the client's memory of what it has not sent, changed in place: ``stage``, and ``subspaces``, pairs of
                a name and of pairs of a tensor's name and what is owed of it. Names may hold anything, so they are no
                keys.

        Raises:
            FCITError: a number is not finite. It is larger than no other, so that ``top_k`` would never send it.
        """
        old = order.trained
        names = sorted(old)
        earlier = self._owed(order, owed)
        missing = [trained[n] - old[n] + earlier[n] if n in earlier else trained[n] - old[n] for n in names]
        vector = np.concatenate([part.reshape(-1) for part in missing]) if missing else np.zeros(0, np.float32)
        if not np.isfinite(vector).all():
            raise FCITError(f"client {order.client}: it has trained numbers that are not finite; lower training.lr")
        places = self._largest(vector)
        tensors, read = self._encoded(vector if places is None else vector[places])
        if places is not None:
            tensors |= _told(places, vector.size)
        if self.feedback:
            if places is None:
                vector -= read
            else:
                vector[places] -= read
            earlier |= _parts(vector, {n: old[n].shape for n in names})
            others = [pair for pair in owed.get("subspaces", []) if pair[0] != order.subspace]
            mine = [order.subspace, [[name, tensor] for name, tensor in sorted(earlier.items())]]
            owed |= {"stage": order.stage, "subspaces": [*others, mine]}
        return tensors

    def _owed(self, order: TrainOrder, owed: dict[str, Any]) -> Tensors:
        """What is owed to the order's subspace, in the order's shapes.

        Of another stage, or of columns that the client lost, it is dropped; where its rank has grown (a site's own
        choice) nothing is owed of the new columns.
        """
        if owed.get("stage") != order.stage:
            owed.clear()
        mine: list[Any] = next((pairs for name, pairs in owed.get("subspaces", []) if name == order.subspace), [])
        sizes = {name: tensor.shape for name, tensor in order.tensors.items()}
        return {name: _fitted(part, sizes.get(name, part.shape)) for name, part in mine}

    def _largest(self, vector: np.ndarray) -> np.ndarray | None:
        """Ascending places of the numbers to be sent, the first of equals; None: of all."""
        count = self.count(vector.size)
        if self.top_k is None or count == vector.size:
            return None if self.top_k is None else np.arange(vector.size)
        sizes = np.abs(vector)
        least = np.partition(sizes, vector.size - count)[vector.size - count]
        above = np.flatnonzero(sizes > least)
        equal = np.flatnonzero(sizes == least)[: count - above.size]
        return np.sort(np.concatenate([above, equal]))

    def _encoded(self, values: np.ndarray) -> tuple[Tensors, np.ndarray]:
        """Numbers as they are sent, and as the server will read them."""
        if self.wire == "int8":
            codes, scales = to_blocks(values)
            return {_VALUES: codes, _SCALES: scales}, from_blocks(codes, scales)
        read = from_bfloat16(to_bfloat16(values)) if self.wire == "bfloat16" else values
        return {_VALUES: read}, read

    # ------------------------------------------------------------------ at the server

    def restored(self, order: TrainOrder, update: ClientUpdate) -> ClientUpdate:
        """The update with whole tensors, the order's plus what was read.

        Raises:
            CodecError: names, types, lengths, places, codes or scales are not those that the order demands.
        """
        shapes = {name: tensor.shape for name, tensor in sorted(order.trained.items())}
        size = sum(math.prod(shape) for shape in shapes.values())
        thin = {n: t for n, t in update.tensors.items() if n.startswith(THIN)}
        whole = [n for n in update.tensors if n in shapes]
        if whole:
            raise CodecError(f"{whole[0][:80]!r} is sent whole, and federation.wire or top_k has it sent as {THIN}")
        _check(thin, self._announced(size))
        values = thin[_VALUES]
        if self.wire == "int8":
            if (values < -MOST_CODE).any() or not np.isfinite(thin[_SCALES]).all() or (thin[_SCALES] < 0).any():
                raise CodecError("codes below -127, or scales that are not finite or negative")
            values = from_blocks(values, thin[_SCALES])
        if self.top_k is not None:
            places = _places(thin, size, self.count(size))
            vector = np.zeros(size, np.float32)
            vector[places] = values
        else:
            vector = values
        moved = _parts(vector, shapes)
        with np.errstate(over="ignore"):  # what is not finite then is rejected as such
            tensors = {name: np.asarray(order.tensors[name] + moved[name]) for name in order.trained}
        return replace(update, tensors=tensors | {n: t for n, t in update.tensors.items() if n not in thin})

    def _announced(self, size: int) -> dict[str, tuple[type, int]]:
        """Type and length of every tensor of an update of so many numbers."""
        count = self.count(size)
        wanted: dict[str, tuple[type, int]] = {_VALUES: (_KINDS[self.wire], count)}
        if self.wire == "int8":
            wanted[_SCALES] = np.float32, blocks(count)
        if self.top_k is not None:
            masked = _masked(size, count)
            wanted[_MASK if masked else _INDICES] = (np.uint8, -(-size // 8)) if masked else (np.uint32, count)
        return wanted


# ---------------------------------------------------------------------- places of the numbers that are sent


def _masked(size: int, count: int) -> bool:
    """Whether a bit for each number is no longer than an index for each that is sent."""
    return -(-size // 8) <= 4 * count


def _told(places: np.ndarray, size: int) -> Tensors:
    if not _masked(size, places.size):
        return {_INDICES: places.astype(np.uint32)}
    chosen = np.zeros(size, bool)
    chosen[places] = True
    return {_MASK: np.packbits(chosen)}


def _places(thin: Tensors, size: int, count: int) -> np.ndarray:
    """Ascending places, all of them within the vector.

    Raises:
        CodecError: they are not ascending, lead out of it, or are more or fewer than ``count``.
    """
    places = np.flatnonzero(np.unpackbits(thin[_MASK])) if _MASK in thin else thin[_INDICES].astype(np.int64)
    if places.size != count or (places.size and places[-1] >= size) or (np.diff(places) <= 0).any():
        raise CodecError(f"its places are not {count:,} ascending ones below {size:,}")
    return places


def _fitted(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor cut to a shape, and filled with zeros up to it."""
    kept = part[tuple(map(slice, shape))]
    lacking = [(0, whole - size) for whole, size in zip(shape, kept.shape, strict=True)]
    return np.pad(kept, lacking) if kept.shape != shape else np.asarray(kept, order="C")


def _parts(vector: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """The vector cut into tensors."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(vector, ends[:-1]) if shapes else []
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _check(thin: Tensors, wanted: dict[str, tuple[type, int]]) -> None:
    if set(thin) != set(wanted):
        odd = sorted(set(thin) ^ set(wanted))
        raise CodecError(f"tensors under {THIN} are not {', '.join(sorted(wanted))} (first: {odd[0][:80]!r})")
    for name, (kind, length) in wanted.items():
        if thin[name].dtype != kind or thin[name].shape != (length,):
            raise CodecError(
                f"{name} is {thin[name].dtype}{thin[name].shape}, the order demands {np.dtype(kind)}({length},)"
            )
