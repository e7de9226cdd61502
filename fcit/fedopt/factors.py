"""Rules for averaging the two factors of a LoRA update B A (``factors:``).

The exact mean is W = sum_k w_k B_k A_k with w_k = n_k / N. With the means A' and B' of the factors,
W - B' A' = sum_k w_k (B_k - B') (A_k - A'): averaging the factors separately is exact only if all clients
share one of them. Projector, gates and prompt pools are always averaged directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fcit.io.trees import Tensors
from fcit.models.layout import A, B
from fcit.models.ranks import rank_of

if TYPE_CHECKING:
    from fcit.fedopt.products import Products, Sketch


class Separate:
    """FedIT (Zhang et al., 2024, arXiv 2305.05644): A' = sum_k w_k A_k and B' = sum_k w_k B_k. Base of the others."""

    summary: ClassVar[str] = "A and B averaged separately (FedIT); the distance from the mean product is logged"
    #: Whether clients may train at different ranks (``adapter.ranks``); factors of a smaller one are filled with zeros.
    mixes_ranks: ClassVar[bool] = True
    #: Whether the sample-weighted mean of what clients return is all it needs, so that this may be a sum of masked
    #: updates, a sum with noise, or what a robust rule makes of them.
    of_the_mean: ClassVar[bool] = True
    #: Whether clients keep something: memory between their orders, or constants that a stage adds to the model.
    remembers: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    #: Whether there is no global model: every client answers with factors of its own.
    per_client: ClassVar[bool] = False
    #: Whether updates weigh by their records, as :meth:`weight` says by default.
    by_records: ClassVar[bool] = True
    #: Whether a client's rank may fall during the run (``adapter.min_rank``).
    prunes: ClassVar[bool] = False
    #: Whether a federated optimiser can step from the server's factors towards what this rule makes.
    stepwise: ClassVar[bool] = True
    #: Whether the server holds the factors of all updates of a round at a time, to multiply them.
    multiplies: ClassVar[bool] = False
    #: Whether other factors are trained from one round to the next.
    by_turn: ClassVar[bool] = False
    #: Whether what rounds add beside a subspace begins with the subspace itself.
    adds_itself: ClassVar[bool] = False

    @classmethod
    def mixes_versions(cls) -> bool:
        """Whether it holds for updates that began from different versions of the server's factors."""
        return cls.of_the_mean and cls.stepwise and not cls.by_turn and not cls.per_client

    def frozen(self, names: Iterable[str], turn: int) -> list[str]:
        """Tensors of a subspace that clients load but do not train in its ``turn``-th round (from 0)."""
        return []

    # ------------------------------------------------------------------ client

    def prepare(self, session: Any) -> None:
        """Before a client's first step; ``session`` is a :class:`fcit.methods.base.Session` with this rule's memory."""

    def penalty(self, session: Any) -> Any:
        """A term of the trained factors that is added to the loss of every batch."""
        return 0.0

    def finish(self, session: Any) -> None:
        """After a client's last step."""

    def own(self, names: list[str], subspaces: list[Tensors], memory: dict[str, Any]) -> list[Tensors]:
        """Subspaces as a client answers questions with; default: the server's.

        Args:
            names: of the subspaces.
            memory: what :meth:`finish` has left in the session's memory.
        """
        return subspaces

    # ------------------------------------------------------------------ server

    def outgoing(self, home: str, bank: Tensors, memory: dict[str, Any], seed: int) -> Tensors:
        """The tensors that a client trains a subspace from; default: the server's.

        Args:
            home: name of the subspace.
            bank: the server's tensors.
            memory: state of this rule for the subspace: JSON values and arrays, saved with every checkpoint.
            seed: of the run.
        """
        return bank

    def at_home(self, bank: Tensors) -> Tensors:
        """The tensors of a subspace that every client trains and keeps, without being sent them; default: none."""
        return {}

    def constants(self, home: str, bank: Tensors, memory: dict[str, Any]) -> dict[str, Tensors]:
        """Groups of factors that a client is sent once and keeps; names begin with ``home`` and never come twice."""
        return {}

    def added(self, ranks: Sequence[int]) -> int:
        """The rank, at most, of what a round of clients of these ranks adds beside a subspace until its stage ends."""
        return 0

    def end_stage(self, bank: Tensors, memory: dict[str, Any]) -> tuple[Tensors, float | None]:
        """The tensors of a subspace after the last round of a stage, and how far they are from what was meant."""
        return bank, None

    def weight(self, tensors: Tensors) -> float | None:
        """The weight of an update's factors in their mean; None: its number of records."""
        return None

    def pruned(self, before: Tensors, after: Tensors) -> int:
        """The rank that a client goes on with after it has trained factors; default: theirs."""
        return rank_of(after)

    def layer(self) -> Products | Sketch:
        """Accumulator of W of one layer; here sufficient for norms, estimated by random probes."""
        from fcit.fedopt.products import Sketch  # needs torch, which reading a configuration does not

        return Sketch()

    def combine(
        self, layers: dict[str, Products | Sketch], old: Tensors, mean: Tensors, memory: dict[str, Any]
    ) -> tuple[Tensors, float | None]:
        """The clients' mean of all tensors, and the relative distance of its products from W.

        Args:
            layers: W of every layer, by the name of its A; empty if clients sent one factor only.
            memory: state of this rule for the subspace, changed in place.

        Returns:
            the tensors, and ||W - B A||_F / ||W||_F over all layers (0 if W is 0; None without layers),
            token gates not considered.
        """
        missed = total = 0.0
        mean = dict(mean)
        for name, layer in layers.items():
            name_b = name.replace(A, B)
            mean[name], mean[name_b] = self.merged(layer, old[name], mean[name], mean[name_b])
            missed += layer.distance(mean[name_b], mean[name]) ** 2
            total += layer.norm() ** 2
        if not layers:
            return mean, None
        return mean, float(np.sqrt(missed / total)) if total else 0.0

    def merged(self, layer: Any, old: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A and B of one layer, given the server's old A and the means of the factors."""
        return a, b


class Svd(Separate):
    """FlexLoRA (Bai et al., 2024, arXiv 2402.11505): the best approximation of W of the adapter's rank.

    W = U S V^T, truncated to rank r; B = U_r S_r / c and A = c V_r^T, where c is the mean length of the old A's
    rows, so that A keeps its scale (our choice; the paper does not define how S is divided). The sign of each
    row of A makes its largest entry positive. If W has lower rank, the remaining columns of B are zero; the
    rows of A are c times orthonormal rows from the part of the old A outside V_r.
    """

    summary = "truncated SVD of the exact mean product (FlexLoRA)"
    mixes_ranks = of_the_mean = stepwise = False
    multiplies = True

    def layer(self) -> Products | Sketch:
        """W as stacked factors: with many clients up to min(d_out, d_in) columns each."""
        from fcit.fedopt.products import Products

        return Products()

    def merged(self, layer: Any, old: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, s, vt = layer.svd()
        return factored(u, s, vt, old)


class Hlora(Svd):
    """HLoRA (as in NVFlare's MedGemma example): FlexLoRA's SVD with clients of different ranks r_k.

    W = sum_k w_k B_k A_k with A_k ``(r_k, d_in)`` and B_k ``(d_out, r_k)``, decomposed at the server's rank as by
    ``svd``. A client is sent the leading r_k rows of A and columns of B. Singular values stand in descending order, so
    that this is the best approximation of rank r_k of what the server has (Eckart and Young). One scale
    s = alpha / ``adapter.rank`` holds for all clients: B_k A_k means the same everywhere. What a client was not sent is
    lacking in its product, and is lost in proportion to its weight.
    """

    summary = "as svd, with clients of different ranks: each is sent the leading singular directions (HLoRA)"
    mixes_ranks = True


def factored(u: np.ndarray, s: np.ndarray, vt: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ``(r, d_in)`` and B ``(d_out, r)`` of W = U diag(s) V^T, truncated to the rank of ``old`` (see :class:`Svd`).

    Args:
        u: ``(d_out, m)``.
        s: ``(m,)``, in descending order.
        vt: ``(m, d_in)``.
        old: an A ``(r, d_in)``, whose scale and further directions the new one keeps.
    """
    # Directions below the resolution of float32 are noise.
    kept = min(len(old), int((s > np.finfo(np.float32).eps * s[0]).sum()))
    rows = vt[:kept]
    signs = np.sign(rows[np.arange(kept), np.abs(rows).argmax(axis=1)])
    scale = float(np.linalg.norm(old, axis=1).mean()) or 1.0
    a, b = np.zeros(old.shape), np.zeros((len(u), len(old)))
    a[:kept] = rows * signs[:, None] * scale
    b[:, :kept] = u[:, :kept] * (s[:kept] * signs / scale)
    rest = completed(rows, old, len(old) - kept)
    a[kept : kept + len(rest)] = rest * scale
    return a.astype(np.float32), b.astype(np.float32)


def completed(rows: np.ndarray, old: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` orthonormal rows outside the span of ``rows``: largest remainders of old rows first."""
    basis, candidates = rows, old.astype(np.float64)
    for _ in range(count):
        candidates = candidates - candidates @ basis.T @ basis
        sizes = np.linalg.norm(candidates, axis=1)
        best = int(sizes.argmax())
        if sizes[best] <= 1e-6 * np.linalg.norm(old):
            break  # the old A has no further direction
        basis = np.vstack([basis, candidates[best] / sizes[best]])
    return basis[len(rows) :]


class Alternate(Separate):
    """RoLoRA (Chen et al., 2025, arXiv 2502.01755): one factor per round, B first, exact in every round.

    All clients have the same A while B is trained, so sum_k w_k B_k A = B' A, and vice versa. Turns are counted per
    subspace, as rounds in which it received updates. Clients return the trained factor only; they are sent both, as
    they keep nothing between rounds.
    """

    summary = "B in one round of a subspace, A in the next (RoLoRA); exact, half the upload"
    by_turn = True

    def frozen(self, names: Iterable[str], turn: int) -> list[str]:
        return sorted(name for name in names if (B if turn % 2 else A) in name)


class FrozenA(Separate):
    """FFA-LoRA (Sun et al., 2024, arXiv 2403.12313): A stays at its initial value, only B is trained and returned."""

    summary = "A stays at its random start, only B is trained (FFA-LoRA); exact, half the upload"

    def frozen(self, names: Iterable[str], turn: int) -> list[str]:
        return sorted(name for name in names if A in name)
