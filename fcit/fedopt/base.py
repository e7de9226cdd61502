"""The base of federated optimisers: how the server steps from its tensors towards the clients' mean."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fcit.config import RunConfig, Section
from fcit.io.threads import by_stretches
from fcit.io.trees import Tensors

#: Invariants that a federated optimiser can declare (checked by :mod:`fcit.contracts.fedopts`).
INVARIANTS = frozenset(
    {"unchanged-updates", "weighted-mean", "state-only-moves-with-updates", "resumes", "permutation", "finite"}
)


PIECE = 2**16  # numbers that are added at a time: they fit into a core's cache


class Mean:
    """Weighted mean of tensors, accumulated update by update: sum n x in float64, divided by N once."""

    def __init__(self) -> None:
        self.weight: float = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, tensors: Tensors, weight: float) -> None:
        """Add one update of ``weight`` records, or of another weight."""
        self.weight += weight
        flat = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
        new = {name: np.empty(tensor.shape) for name, tensor in tensors.items() if name not in self._sums}
        self._sums |= new

        def add(name: str, stretch: slice) -> None:
            total, value = self._sums[name].reshape(-1)[stretch], flat[name][stretch]
            if name in new:
                np.multiply(value, weight, out=total, dtype=np.float64)
            else:
                _add(total, value, weight)

        by_stretches(add, flat)

    def result(self) -> Tensors:
        """The mean as float32."""
        flat = {name: total.reshape(-1) for name, total in self._sums.items()}
        means = {name: np.empty(total.shape, np.float32) for name, total in self._sums.items()}

        def divide(name: str, stretch: slice) -> None:
            out = means[name].reshape(-1)[stretch]
            np.divide(flat[name][stretch], self.weight, out=out, casting="same_kind")

        by_stretches(divide, flat)
        return means


def _add(total: np.ndarray, value: np.ndarray, weight: float) -> None:
    """total += weight value in float64, piece by piece: a whole projector would be moved through memory."""
    term = np.empty(min(PIECE, len(total)))
    for first in range(0, len(total), PIECE):
        piece = slice(first, first + PIECE)
        product = np.multiply(value[piece], weight, out=term[: len(total[piece])], dtype=np.float64)
        total[piece] += product


class FedOpt:
    """Base of the federated optimisers."""

    class Options(Section):
        """Keys under ``fedopt:`` besides ``name``."""

    summary: ClassVar[str] = ""
    #: Whether clients keep ``session.memory`` between their orders.
    remembers: ClassVar[bool] = False
    #: Tensors as large as what is trained, in float32: how many the server keeps of every subspace, how many a client
    #: keeps of each one it has trained, and how many it needs beside while it trains; for `fcit doctor`.
    server_copies: ClassVar[int] = 0
    client_copies: ClassVar[int] = 0
    training_copies: ClassVar[int] = 0
    #: Whether the server takes the mean unchanged; required by rules as ``factors: svd``, which make new factors.
    averages: ClassVar[bool] = False
    #: Whether a round may train only half of a subspace (``factors: alternate``).
    halves: ClassVar[bool] = True
    #: The :data:`INVARIANTS` that the contract checks.
    invariants: ClassVar[frozenset[str]] = INVARIANTS - {"weighted-mean"}

    def __init__(self, config: RunConfig) -> None:
        options = {k: v for k, v in config.fedopt.items() if k != "name"}
        self.options: Any = self.Options.model_validate(options)

    # ------------------------------------------------------------------ client

    def prepare(self, session: Any) -> None:
        """Before the first step; ``session`` is a :class:`fcit.methods.base.Session` with this
        optimiser's ``received`` and ``memory``."""

    def on_gradients(self, session: Any) -> None:
        """After the method's hook on gradients, before gradient clipping."""

    def on_step(self, session: Any) -> None:
        """After each optimiser step, before the method's hook; ``session.lr`` is the step's learning rate."""

    def finish(self, session: Any) -> Tensors:
        """After the last step: tensors for the server, as announced by :meth:`extra_shapes`."""
        return {}

    # ------------------------------------------------------------------ server

    def broadcast(self, tensors: Tensors, memory: dict[str, Any]) -> Tensors:
        """Extra float32 arrays for a client that will train ``tensors`` (a subspace's, or the shared ones)."""
        return {}

    def extra_shapes(self, trained: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what :meth:`finish` returns: a subset of the names in ``trained``."""
        return {}

    def reject_reason(self, extra: Tensors) -> str | None:
        """Why an update is rejected for what :meth:`finish` returned (finite, of the announced shapes), or None."""
        return None

    @classmethod
    def sums(cls) -> bool:
        """Whether clients return extra tensors, which :meth:`absorb` processes."""
        return cls.absorb is not FedOpt.absorb

    def absorb(self, sums: Tensors, memory: dict[str, Any]) -> None:
        """Process the sums (float64) of what the clients' :meth:`finish` returned, before :meth:`step`."""

    def step(self, old: Tensors, mean: Tensors, memory: dict[str, Any]) -> Tensors:
        """New server tensors from the old ones and the clients' mean (same names; a subset of the home's).

        Args:
            memory: state of this optimiser for this subspace: JSON values and arrays, changed in
                place and saved with every checkpoint; empty at the subspace's first update.
        """
        raise NotImplementedError
