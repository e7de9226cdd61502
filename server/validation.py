"""Checks every update before it can touch the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fcit.federation.records import PREFIXES, ClientUpdate, TrainOrder

FACTOR = 10.0  # an update may be this many times the running median norm per step
QUIET = 20  # accepted updates before the norm rule is active
WINDOW = 500  # accepted updates the median looks back on


@dataclass
class Validator:
    """Judges updates of a round; the norm rule looks at accepted updates of earlier rounds only.

    The norm is taken per sqrt(optimiser steps): Adam's steps are of bounded size and largely
    uncorrelated in direction, so honest updates of long and short local epochs are comparable.
    """

    batch_size: int = 16
    epochs: int = 1
    history: list[float] = field(default_factory=list)
    _round: dict[tuple[int, str], float] = field(default_factory=dict)

    def problem(
        self,
        order: TrainOrder,
        update: ClientUpdate,
        declared: int | None,
        extra: dict[str, tuple[int, ...]] | None = None,
    ) -> str | None:
        """Why the update is rejected, or None.

        Args:
            declared: the client's shard size if known.
            extra: names (with their prefix) and shapes of the method's and the optimiser's own tensors.
        """
        for name in ("stage", "round", "client", "shard", "subspace"):
            got, wanted = getattr(update, name), getattr(order, name)
            if got != wanted:
                return f"{name} is {got!r}, the order says {wanted!r}"
        shapes = {n: t.shape for n, t in order.trained.items()} | (extra or {})
        if set(update.tensors) != set(shapes):
            odd = sorted(set(update.tensors) ^ set(shapes))
            return f"tensor names differ from the order's (first: {odd[0]})"
        for name, tensor in update.tensors.items():
            if tensor.shape != shapes[name] or tensor.dtype != np.float32:
                return f"{name} is {tensor.dtype}{tensor.shape}, expected float32{shapes[name]}"
            if not np.isfinite(tensor).all():
                return f"{name} holds values that are not finite"
        if not 0 <= update.seconds < math.inf or update.kept < 0:
            return f"claims {update.seconds} seconds and {update.kept} bytes kept"
        if update.examples < 1 or not math.isfinite(update.loss):
            return f"claims {update.examples} records and a loss of {update.loss}"
        steps = math.ceil(update.examples * self.epochs / self.batch_size)
        if update.steps != steps:
            return f"claims {update.steps} steps for {update.examples} records, the configuration makes {steps}"
        if declared is not None and update.examples > declared:
            return f"claims {update.examples} records, its shard has {declared}"
        norm = self._norm(order, update)
        median = float(np.median(self.history)) if len(self.history) >= QUIET else math.inf
        if norm > FACTOR * median:
            return f"moves {norm:.3g} per step^0.5, over {FACTOR:.0f} times the median {median:.3g} of accepted updates"
        self._round[update.client, update.shard] = norm
        return None

    @staticmethod
    def _norm(order: TrainOrder, update: ClientUpdate) -> float:
        moved = (t - order.tensors[n] for n, t in update.tensors.items() if not n.startswith(PREFIXES))
        square = sum(float((t.astype(np.float64) ** 2).sum()) for t in moved)
        return float(np.sqrt(square) / np.sqrt(update.steps))

    def close_round(self) -> None:
        """The round is committed: its accepted norms join the history, in client order."""
        self.history += [self._round[pair] for pair in sorted(self._round)]
        self.history = self.history[-WINDOW:]
        self._round.clear()

    def drop_round(self) -> None:
        """The round is repeated: forget its norms."""
        self._round.clear()
