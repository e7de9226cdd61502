"""Folds the clients' updates into one step of the server: mean, factor aggregation, federated optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fcit.fedopt.base import FedOpt, Mean, Tensors
from fcit.fedopt.factors import A, B, Separate

if TYPE_CHECKING:
    from fcit.fedopt.products import Products, Sketch


class Aggregator:
    """What :meth:`fcit.methods.base.Method.aggregate` is given for one round.

    ``exactness`` collects, by home, how far the factors taken are from the mean of the products.

    Example:
        >>> group = aggregator.group("0", state.subspaces["0"], memory)
        >>> for update in updates: group.add(update.tensors, update.examples, update.fedopt)
        >>> state.subspaces["0"] = group.result()
    """

    def __init__(self, fedopt: FedOpt, factors: Separate | None = None) -> None:
        self.fedopt, self.factors = fedopt, factors or Separate()
        self.exactness: dict[str, float] = {}

    def group(self, home: str, old: Tensors, memory: dict[str, Any]) -> Group:
        """The fold of one home: a subspace by its name, or ``shared``.

        Args:
            old: the server's tensors; updates may hold a subset of them.
            memory: what the federated optimiser keeps for this home, changed in place.
        """
        return Group(self, home, old, memory)


class Group:
    """One home's updates, added in ascending client order."""

    def __init__(self, aggregator: Aggregator, home: str, old: Tensors, memory: dict[str, Any]) -> None:
        self._aggregator, self._home, self._old, self._memory = aggregator, home, old, memory
        self._mean, self._sums = Mean(), dict[str, np.ndarray]()
        self._layers: dict[str, Products | Sketch] = {}

    def add(self, tensors: Tensors, weight: int, extra: Tensors) -> None:
        """Add one update of ``weight`` records; ``extra`` is what the federated optimiser's client side returned."""
        self._mean.add(tensors, weight)
        for name in tensors:
            if A in name and name.replace(A, B) in tensors:
                if name not in self._layers:
                    self._layers[name] = self._aggregator.factors.layer()
                self._layers[name].add(tensors[name.replace(A, B)], tensors[name], weight)
        for name in sorted(set(extra) & set(tensors)):
            self._sums[name] = self._sums.get(name, 0.0) + extra[name].astype(np.float64)

    def result(self) -> Tensors:
        """The server's new tensors; without updates the old ones, and no state advances."""
        if not self._mean.weight:
            return self._old
        fedopt = self._aggregator.fedopt
        mean, missed = self._aggregator.factors.settle(self._layers, self._old, self._mean.result())
        if missed is not None:
            self._aggregator.exactness[self._home] = float(f"{missed:.6g}")
        if self._sums:
            fedopt.absorb(self._sums, self._memory)
        return {**self._old, **fedopt.step({n: self._old[n] for n in mean}, mean, self._memory)}
