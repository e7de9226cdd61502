"""From the clients' updates to one step of the server: robust rule, mean, LoRA factors, federated optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcit.fedopt.base import FedOpt, Mean
from fcit.fedopt.factors import Separate
from fcit.fedopt.padding import Padding
from fcit.fedopt.robust import LEAST, Off, UpdateBuffer
from fcit.io.threads import beside, by_stretches, each
from fcit.io.trees import Tensors
from fcit.models.layout import A, B, is_factor
from fcit.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from fcit.fedopt.products import Products, Sketch


class Aggregator:
    """Passed to :meth:`fcit.methods.base.Method.aggregate` for one round.

    A home is a subspace or the shared tensors. ``exactness`` collects, by home, the relative distance of the averaged
    factors from the mean of the products; ``skipped`` the homes with too few updates for the robust rule.

    Args:
        robust: the robust aggregation rule; none by default.
        scratch: folder for updates that such a rule needs all at once; required with a rule.
        summed: updates are weighted means of several clients, of whose products of factors nothing is known:
            ``exactness`` stays empty.
        kept: state of the rule for factors by home, changed in place; a new one by default.

    Example:
        >>> group = aggregator.group("0", state.subspaces["0"], memory)
        >>> for update in updates: group.add(update.tensors, update.examples, update.fedopt)
        >>> state.subspaces["0"] = group.result()
    """

    def __init__(
        self,
        fedopt: FedOpt,
        factors: Separate | None = None,
        robust: Off | None = None,
        scratch: Path | None = None,
        summed: bool = False,
        kept: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.fedopt, self.factors, self.robust, self.summed = fedopt, factors or Separate(), robust or Off(), summed
        self._scratch, self._groups = scratch, 0
        self.kept = {} if kept is None else kept
        self.exactness: dict[str, float] = {}
        self.skipped: list[str] = []
        #: Differential privacy of this round: updates are those it has clipped, and homes are released by it.
        self.mechanism: Mechanism | None = None

    @property
    def flags(self) -> dict[str, Any]:
        """Entries of the ``round`` event about the robust rule; none without a rule."""
        return {"robust_skipped": sorted(self.skipped)} if self.robust.buffers else {}

    def group(self, home: str, old: Tensors, memory: dict[str, Any]) -> Group:
        """The aggregation of one home: a subspace by its name, or ``shared``.

        Args:
            old: the server's tensors; updates may hold a subset of them.
            memory: state of the federated optimiser for this home, changed in place.

        Raises:
            ValueError: a robust rule without a scratch folder.
        """
        if self.mechanism is not None:
            return PrivateGroup(self, home, old, memory)
        buffer = None
        if self.robust.buffers:
            if self._scratch is None:
                raise ValueError("a robust rule needs a scratch folder: Aggregator(..., scratch=folder)")
            buffer = UpdateBuffer(self._scratch / str(self._groups))
            self._groups += 1
        return Group(self, home, old, memory, buffer)


class Group:
    """One home's updates, added in ascending client order."""

    def __init__(
        self,
        aggregator: Aggregator,
        home: str,
        old: Tensors,
        memory: dict[str, Any],
        buffer: UpdateBuffer | None = None,
    ) -> None:
        self._aggregator, self._home, self._old, self._memory, self._buffer = aggregator, home, old, memory, buffer
        self._mean, self._sums, self._padding = Mean(), dict[str, np.ndarray](), Padding(old)
        self._factors = Mean()  # where they have weights of their own
        self._layers: dict[str, Products | Sketch] = {}

    def add(self, tensors: Tensors, weight: int, extra: Tensors) -> None:
        """Add one update of ``weight`` records; ``extra`` was returned by the federated optimiser's client hooks."""
        if self._buffer is None:
            self._fold(tensors, weight)
        else:
            self._buffer.add(tensors, weight)
        for name in sorted(set(extra) & set(tensors)):
            self._sums[name] = np.asarray(self._sums.get(name, 0.0) + extra[name].astype(np.float64))

    def _fold(self, tensors: Tensors, weight: int) -> None:
        if self._aggregator.summed:
            self._mean.add(tensors, weight)
            return
        with beside(lambda: self._multiply(tensors, weight), sum(tensor.size for tensor in tensors.values())):
            own = self._aggregator.factors.weight(tensors)
            whole = self._padding(tensors, counts=own != 0)
            self._mean.add(whole if own is None else {n: t for n, t in whole.items() if not is_factor(n)}, weight)
            if own is not None:
                self._factors.add({n: t for n, t in whole.items() if is_factor(n)}, own)

    def _multiply(self, tensors: Tensors, weight: int) -> None:
        """Add the products of LoRA factors to their layers."""
        names = [name for name in tensors if A in name and name.replace(A, B) in tensors]
        self._layers |= {name: self._aggregator.factors.layer() for name in names if name not in self._layers}

        def multiply(name: str) -> None:
            self._layers[name].add(tensors[name.replace(A, B)], tensors[name], weight)

        each(multiply, names, sum(tensors[name].size for name in names))

    def result(self) -> Tensors:
        """The server's new tensors; without updates the old ones and unchanged state."""
        if self._buffer is None:
            mean = self._averaged()
        else:
            mean = self._combined(self._buffer)
            self._buffer.close()
        if not mean:
            return self._old
        if self._sums:
            self._aggregator.fedopt.absorb(self._sums, self._memory)
        return self._stepped(mean)

    def _stepped(self, mean: Tensors) -> Tensors:
        """The server's tensors after the federated optimiser's step."""
        new = self._aggregator.fedopt.step({n: self._old[n] for n in mean}, mean, self._memory)
        # Arithmetic with arrays without dimensions gives numbers.
        return {**self._old, **{name: np.asarray(tensor) for name, tensor in new.items()}}

    def _combined(self, buffer: UpdateBuffer) -> Tensors:
        """The result of the robust rule; of too few updates the plain mean."""
        if len(buffer) >= LEAST:
            return self._aggregator.robust.combine(buffer, self._old)
        if len(buffer):
            self._aggregator.skipped.append(self._home)
        for tensors, weight in buffer.updates():
            self._fold(tensors, weight)
        return self._averaged()

    def _averaged(self) -> Tensors:
        """The sample-weighted mean, with LoRA factors averaged by the rule of ``factors:``; empty without updates."""
        if not self._mean.weight:
            return {}
        averaged = self._mean.result()
        if not self._aggregator.factors.by_records:
            names = [n for layer in self._layers for n in (layer, layer.replace(A, B))]
            averaged |= self._factors.result() if self._factors.weight else {n: self._old[n] for n in names}
        if not self._aggregator.summed:
            averaged = self._padding.completed(averaged)
        memory = self._aggregator.kept.setdefault(self._home, {})
        mean, missed = self._aggregator.factors.combine(self._layers, self._old, averaged, memory)
        if not memory:
            del self._aggregator.kept[self._home]
        if missed is not None:
            self._aggregator.exactness[self._home] = float(f"{missed:.6g}")
        return mean


class PrivateGroup(Group):
    """One home's clipped updates: their sum, and its release with noise instead of a mean.

    Weights do not count, products of factors are not compared: both would say something of single clients.
    """

    def add(self, tensors: Tensors, weight: int, extra: Tensors) -> None:
        """Add one update that :meth:`Mechanism.clipped` returned."""

        new = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
        old = {name: self._old[name].reshape(-1) for name in tensors}
        self._sums |= {name: np.zeros(tensor.shape) for name, tensor in tensors.items() if name not in self._sums}

        def add(name: str, stretch: slice) -> None:
            total = self._sums[name].reshape(-1)[stretch]
            total += np.subtract(new[name][stretch], old[name][stretch], dtype=np.float64)

        by_stretches(add, new)

    def result(self) -> Tensors:
        """The server's new tensors, also without updates; the old ones if the home was not trained.

        Raises:
            ValueError: the home was released before in this round.
        """
        mechanism = self._aggregator.mechanism
        if mechanism is None or not (mean := mechanism.release(self._home, self._sums, self._old)):
            return self._old
        return self._stepped(mean)
