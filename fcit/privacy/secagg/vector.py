"""What a client contributes as a vector of integers, and the sum of such vectors as what a group contributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fcit.io.trees import Tensors

#: Losses are cut to it before they are summed.
MOST_LOSS = 64.0
#: Numbers before the differences: weight, whether the update needed no clipping, whether numbers were cut, loss.
HEAD = 4


@dataclass(frozen=True)
class Contribution:
    """What one client puts into the sum.

    Attributes:
        weight: records it was trained on, or 1 where all clients weigh the same.
        loss: mean loss of the local training.
        differences: how far it moved each tensor.
        unclipped: whether its update was not longer than the clipping norm.
    """

    weight: int
    loss: float
    differences: Tensors
    unclipped: bool = False


@dataclass(frozen=True)
class Sum:
    """What a group contributes together.

    Attributes:
        weight: of all its members.
        loss: their weighted mean.
        means: weighted means of the differences, float64.
        unclipped: members whose update needed no clipping.
        cut: members some of whose numbers were cut to the range.
    """

    weight: int
    loss: float
    means: Tensors
    unclipped: int
    cut: int


@dataclass(frozen=True)
class Coding:
    """How numbers become integers, the same for all members of a group.

    A number x of a difference becomes q = round(x (2^(b-1) - 1) / range), |q| < 2^(b-1), numbers beyond the range are
    cut to it. A client of weight w contributes w and w q, modulo 2^32, or 2^64 where the largest possible sum needs it.
    The weighted mean is then off by at most half a step, range / (2^(b-1) - 1), whatever the weights.

    Args:
        bits: b.
        range: largest difference, and with ``inward`` the largest of a clipped update.
        most: largest weight of a member.
        members: largest number of members.
        shapes: of the tensors, by name.
        inward: round towards zero, so that no update becomes longer than it was clipped to; off by up to a whole step.
    """

    bits: int
    range: float
    most: int
    members: int
    shapes: Mapping[str, tuple[int, ...]]
    inward: bool = False

    @property
    def top(self) -> int:
        """The largest integer that a number becomes."""
        return 2 ** (self.bits - 1) - 1

    @property
    def step(self) -> float:
        """The distance between two numbers that can be told apart."""
        return self.range / self.top

    @cached_property
    def kind(self) -> np.dtype:
        """uint32 or uint64: the ring that sums are computed in.

        Raises:
            ValueError: the sum could be too large for both.
        """
        largest = self.members * self.most * self.top
        for kind in (np.dtype(np.uint32), np.dtype(np.uint64)):
            if largest < 2 ** (8 * kind.itemsize - 1):
                return kind
        raise ValueError(
            f"a sum over {self.members} clients of up to {self.most} records does not fit into 64 bits; "
            f"lower privacy.quantise_bits ({self.bits}) or federation.max_records"
        )

    @cached_property
    def size(self) -> int:
        """Integers of a vector."""
        return HEAD + sum(math.prod(shape) for shape in self.shapes.values())

    def encoded(self, one: Contribution) -> np.ndarray:
        """A client's contribution as a vector (:attr:`kind`), not masked yet.

        Raises:
            ValueError: a weight, tensor or number that cannot be encoded.
        """
        if not 1 <= one.weight <= self.most:
            raise ValueError(f"{one.weight} records, the group's sum has room for {self.most} of each member")
        if {name: tensor.shape for name, tensor in one.differences.items()} != dict(self.shapes):
            raise ValueError("its tensors are not those of the group")
        vector = np.empty(self.size, np.int64)
        at, cut = HEAD, False
        for name in sorted(self.shapes):
            values = np.asarray(one.differences[name], np.float64).reshape(-1) / self.range
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds numbers that are not finite")
            cut = cut or bool((np.abs(values) > 1).any())
            values = np.clip(values, -1, 1) * self.top
            vector[at : at + len(values)] = np.trunc(values) if self.inward else np.rint(values)
            at += len(values)
        vector[HEAD:] *= one.weight
        loss = round(min(max(one.loss / MOST_LOSS, -1.0), 1.0) * self.top)
        vector[:HEAD] = one.weight, one.unclipped, cut, one.weight * loss
        return vector.astype(self.kind)  # modulo its size

    def decoded(self, total: np.ndarray, members: int) -> Sum:
        """The sum of the contributions of so many members, without masks.

        Raises:
            ValueError: a sum that no such contributions have.
        """
        signed = total.view(np.dtype(f"i{self.kind.itemsize}")).astype(np.int64)
        weight, unclipped, cut = (int(value) for value in signed[: HEAD - 1])
        if not members <= weight <= members * self.most:
            raise ValueError(f"the sum is of {weight} records, {members} members can have {members * self.most}")
        if not 0 <= unclipped <= members or not 0 <= cut <= members:
            raise ValueError(f"the sum counts {unclipped} and {cut} of {members} members")
        if max(int(signed[HEAD - 1 :].max()), -int(signed[HEAD - 1 :].min())) > weight * self.top:
            raise ValueError("a number of the sum is larger than all members together can make it")
        means, at = {}, HEAD
        for name, shape in sorted(self.shapes.items()):
            count = math.prod(shape)
            means[name] = (signed[at : at + count] * (self.step / weight)).reshape(shape)
            at += count
        return Sum(weight, float(signed[HEAD - 1]) * MOST_LOSS / (self.top * weight), means, unclipped, cut)
