"""HetLoRA (Cho et al., 2024, arXiv 2401.06432 [M]), as two public re-implementations agree; its text was not read."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from fcit.fedopt.factors import Separate
from fcit.io.trees import Tensors
from fcit.models.layout import A, B, is_factor
from fcit.models.ranks import rank_of


class Hetlora(Separate):
    """Zero-padded factors, weighted by the norm of their product; clients whose last columns fade lose them.

    Client k trains A_k = A[:r_k] and B_k = B[:, :r_k]. The server fills both with zeros to its own rank and averages
    A and B each by itself:

        A' = sum_k p_k A_k,   B' = sum_k p_k B_k,   p_k = S_k / sum_j S_j,   S_k = sqrt(sum_layers ||B_k A_k||_F^2)

    Self-pruning. The tail of a client are its columns from floor(gamma r_k) on, gamma = 0.99. Its loss has the term
    lambda sum_layers ||B_tail||_F ||A_tail||_F, lambda = 0.01. If this sum is smaller after a training than before,
    r_k <- max(r_min, floor(gamma r_k)), with r_min of ``adapter.min_rank``, and the update is cut to that rank.

    Ours [D]: the server compares the tails, knowing both, so that nothing but factors is sent; the round's upload still
    has the columns that are cut. Columns that no client with a weight has in a round stay as they are: zeros in both
    factors could never move again. A tensor that is no factor is averaged by records. If no client has a product (all
    S_k = 0), factors stay. A client's rank holds for all subspaces that it trains.
    """

    summary = "zero-padded A and B weighted by the norm of their product, ranks that shrink (HetLoRA)"
    of_the_mean = by_records = False
    prunes = True
    GAMMA: ClassVar[float] = 0.99
    LAMBDA: ClassVar[float] = 0.01

    def weight(self, tensors: Tensors) -> float:
        """S_k of an update."""
        from fcit.fedopt.products import squared  # needs torch, which reading a configuration does not

        pairs = [
            (b, tensors[name]) for name in tensors if A in name and (b := tensors.get(name.replace(A, B))) is not None
        ]
        return math.sqrt(sum(squared(b, a) for b, a in pairs))

    def penalty(self, session: Any) -> Any:
        """lambda sum ||B_tail|| ||A_tail|| of what is trained; 0 for factors of rank one, which are all there is."""
        trained = session.adapters.trainable
        return self.LAMBDA * sum(
            trained[name.replace(A, B)][:, tail:].norm() * trained[name][tail:].norm()
            for name in trained
            if A in name and (tail := _kept(len(trained[name]))) > 0
        )

    def pruned(self, before: Tensors, after: Tensors) -> int:
        """floor(gamma r_k) if the tail has faded in a training, else r_k.

        Args:
            before: factors as they were sent.
            after: the same as they came back.
        """
        rank = rank_of(after)
        tail = _kept(rank)
        return tail if tail > 0 and _tails(after, tail) < _tails(before, tail) else rank


def _kept(rank: int) -> int:
    """Columns in front of the tail."""
    return math.floor(Hetlora.GAMMA * rank)


def _tails(tensors: Tensors, tail: int) -> float:
    """sum_layers ||B_tail||_F ||A_tail||_F."""
    from fcit.fedopt.products import squares

    sizes = {
        name: squares(tensor[tail:] if A in name else tensor[:, tail:])
        for name, tensor in tensors.items()
        if is_factor(name)
    }
    return sum(math.sqrt(size * sizes[name.replace(A, B)]) for name, size in sizes.items() if A in name)
