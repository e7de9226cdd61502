"""Updates that come late: how an update trained on earlier tensors enters the server's next step.

A rule turns every update into one that could have been trained on the server's tensors of now; averaging, robust rules
and the federated optimiser then do with it what they do in a round that waits. ``x`` are the server's tensors of now,
``x'`` those that the client began with, ``y`` those it ended with, ``tau`` the server updates in between.

Checked against public code, and against reading notes of both papers (which quote their algorithms), not against the
papers themselves: FLSim, by FedBuff's authors (facebookresearch/FLSim: ``optimizers/async_aggregators.py``,
``utils/async_trainer/``), APPFL (``aggregator/fedasync_aggregator.py``), Plato, FedScale and FLGo. All have the
equations below; where they differ from each other or from what is here, the rule says so.
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
        """s(tau), 1 for a fresh update (Xie et al., 2019, arXiv 1903.03934, section 5.2; the same in APPFL and Plato).

        polynomial: (1 + tau)^-a; with a = 1/2 it is FedBuff's 1 / sqrt(1 + tau) ("staleness scaling" in Nguyen et al.,
        2022, arXiv 2106.06639; FLSim's ``PolynomialStalenessWeight``). hinge: 1 if tau <= b, else
        1 / (a (tau - b) + 1). constant: 1. FedAsync's experiments have a = 1/2 for polynomial, a in {4, 10} and b in
        {2, 4} for hinge.

        tau is 0 for a fresh update, as in that code and as s(0) = 1 asks for. By the letter of FedAsync's Algorithm
        1, x_t is made of x_{t-1}, and an update of x_{t-1} has t - tau = 1.
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

    The paper: w <- w - eta_g / K sum_k s(tau_k) Delta_k with Delta_k = w'_k - y_k, what the client began with less what
    it ended with, and not less the server's weights of now (FLSim's ``fed_buff_aggregation``). Here:

        x <- x + eta sum_k w_k s(tau_k) (y_k - x'_k)

    An update takes part as x + s(tau) (y - x'); their mean is then x plus the sum above. A fresh one takes part as it
    is: a buffer without late updates is a round of FedAvg, bit for bit.

    Differences from the paper: w_k = n_k / sum n as everywhere here, not 1 / K (FLSim has both: ``example_weight``);
    eta is that of ``fedopt:``; tau counts the updates that the tensor itself has had, so that of several subspaces one
    that no one trained meanwhile is not stale; and a buffer holds ``clients_per_round`` by default, where the paper has
    K = 10 whatever the concurrency. All four are ours. As in the paper, weights are not divided by their sum: a stale
    buffer takes a shorter step. FedScale divides by sum_k s(tau_k), FLSim by s of an average staleness that it is told.
    """

    def kept(self, trained: Tensors, base: Tensors) -> Tensors:
        return {name: np.asarray(tensor - base[name]) for name, tensor in trained.items()}

    def joined(self, update: Tensors, now: Tensors, tau: Staleness, late: bool) -> Tensors:
        if not late:
            return update

        def moved(name: str, difference: np.ndarray) -> np.ndarray:
            return np.asarray(now[name] + np.float32(self.weight(tau(name))) * difference)

        return {n: moved(n, t) if n in now else t for n, t in update.items()}


class FedAsync(Late):
    """FedAsync (Xie et al., 2019, arXiv 1903.03934, Algorithm 1): every update is mixed in as it comes.

        x <- (1 - alpha s(tau)) x + alpha s(tau) y

    That is the paper's x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new with alpha_t = alpha s(t - tau), and APPFL's and
    Plato's; its experiments have alpha in {0.6, 0.9}. Its clients minimise their loss plus rho / 2 |y - x'|^2: that is
    ``fedopt: fedprox`` here. ``asynchronous.buffer`` is 1, and another one is refused.
    """

    def joined(self, update: Tensors, now: Tensors, tau: Staleness, late: bool) -> Tensors:
        def mixed(name: str, tensor: np.ndarray) -> np.ndarray:
            share = np.float32(self.settings.mixing * self.weight(tau(name)))
            return np.asarray(now[name] + share * (tensor - now[name]))

        return {n: mixed(n, t) if n in now else t for n, t in update.items()}


RULES: dict[str, type[Late]] = {"fedbuff": FedBuff, "fedasync": FedAsync}
