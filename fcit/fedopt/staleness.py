"""Updates that come late: how an update trained on earlier tensors enters the server's next step.

A rule turns every update into one that could have been trained on the server's tensors of now; averaging, robust rules
and the federated optimiser then do with it what they do in a round that waits. ``x`` are the server's tensors of now,
``x'`` those that the client began with, ``y`` those it ended with, ``tau`` the server updates in between.

Equations are quoted from memory and compared with other implementations, not with the papers' text; what is ours says
so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from fcit.config.devices import Asynchronous
from fcit.io.trees import Tensors

#: Gives the number of server updates that a tensor has had since, by its name.
Staleness = Callable[[str], int]


class Late(ABC):
    """A rule for updates that come late, and the weights by which they count less."""

    def __init__(self, settings: Asynchronous) -> None:
        self.settings = settings

    def weight(self, tau: int) -> float:
        """s(tau), 1 for a fresh update (Xie et al., 2019, arXiv 1903.03934, section 5.2).

        polynomial: (1 + tau)^-a; with a = 1/2 it is that of FedBuff (Nguyen et al., 2022, arXiv 2106.06639, section 5).
        hinge: 1 if tau <= b, else 1 / (a (tau - b) + 1). constant: 1.
        """
        a, b = self.settings.a, self.settings.b
        if self.settings.staleness == "polynomial":
            return float((1 + tau) ** -a)
        if self.settings.staleness == "hinge" and tau > b:
            return 1 / (a * (tau - b) + 1)
        return 1.0

    def kept(self, trained: Tensors, base: Tensors) -> Tensors:
        """What is kept of an update that crosses a server update: the tensors themselves.

        Args:
            trained: y.
            base: x', of the same names.
        """
        return trained

    @abstractmethod
    def joined(self, update: Tensors, now: Tensors, tau: Staleness, late: bool) -> Tensors:
        """An update as it takes part in the server's step.

        Args:
            update: y or, if it comes late, what :meth:`kept` returned.
            now: x; of names that it lacks nothing changes.
            late: whether a server update came between.
        """


class FedBuff(Late):
    """FedBuff (Nguyen et al., 2022, arXiv 2106.06639, Algorithm 1): a buffer of updates makes one server update.

        x <- x + eta sum_k w_k s(tau_k) (y_k - x'_k)

    An update takes part as x + s(tau) (y - x'); their mean is then x plus the sum above. A fresh one takes part as it
    is: a buffer without late updates is a round of FedAvg, bit for bit.

    Differences from the paper: w_k = n_k / sum n as everywhere here, not 1 / K; eta is that of ``fedopt:``; and tau
    counts the updates that the tensor itself has had, so that of several subspaces one that no one trained meanwhile
    is not stale. All three are ours.
    """

    def kept(self, trained: Tensors, base: Tensors) -> Tensors:
        return {name: tensor - base[name] for name, tensor in trained.items()}

    def joined(self, update: Tensors, now: Tensors, tau: Staleness, late: bool) -> Tensors:
        if not late:
            return update
        return {n: now[n] + np.float32(self.weight(tau(n))) * t if n in now else t for n, t in update.items()}


class FedAsync(Late):
    """FedAsync (Xie et al., 2019, arXiv 1903.03934, Algorithm 1): every update is mixed in as it comes.

        x <- (1 - alpha s(tau)) x + alpha s(tau) y

    The paper's clients minimise their loss plus rho / 2 |y - x'|^2: that is ``fedopt: fedprox`` here.
    """

    def joined(self, update: Tensors, now: Tensors, tau: Staleness, late: bool) -> Tensors:
        def mixed(name: str, tensor: np.ndarray) -> np.ndarray:
            share = np.float32(self.settings.mixing * self.weight(tau(name)))
            return np.asarray(now[name] + share * (tensor - now[name]))

        return {n: mixed(n, t) if n in now else t for n, t in update.items()}


RULES: dict[str, type[Late]] = {"fedbuff": FedBuff, "fedasync": FedAsync}
