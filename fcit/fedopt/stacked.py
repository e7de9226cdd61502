"""Rules whose rounds add frozen products to the model of a stage: FLoRA's stacks and FedEx-LoRA's residuals.

The published methods merge what a round adds into the backbone. Here a run keeps one adapter of a fixed rank for every
subspace, so the additions of a stage are kept beside it, as **pieces** in factored form: clients are sent each piece
once, add it to their frozen model, and keep it; those that were absent are sent what they missed with their next order.
After the last round of a stage the server adds up the subspace and its pieces, takes the best approximation of the
adapter's rank (truncated SVD) as the new subspace, and the pieces end. Within a stage a rule is exact; what the
truncation loses is told in the event ``recompressed``. Pieces grow with every round in which their subspace is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcit import seeding
from fcit.fedopt.factors import Separate, factored
from fcit.io.trees import Tensors
from fcit.models.layout import A, B, is_factor
from fcit.models.ranks import padded

if TYPE_CHECKING:
    from fcit.fedopt.products import Products, Sketch

_STD = 0.01  # of a fresh A, as of the first one (fcit.methods.factory)


class Stacked(Separate):
    """Base: pieces in the memory of a subspace, ``{"pieces": [[number, [[name, tensor], ...]], ...], "count": n}``.

    Numbers of pieces never come twice in a run: constants of one name never change.
    """

    keeps = multiplies = True
    of_the_mean = stepwise = False

    def layer(self) -> Products | Sketch:
        """W as stacked factors."""
        from fcit.fedopt.products import Products

        return Products()

    def constants(self, home: str, bank: Tensors, memory: dict[str, Any]) -> dict[str, Tensors]:
        return {f"{home}.{number}": dict(tensors) for number, tensors in memory.get("pieces", [])}

    def prepare(self, session: Any) -> None:
        """Add the pieces to the output of every adapted layer until the training ends."""
        adapters = session.adapters
        adapters.add_frozen(chunks(session.constants.values(), adapters.adapter.rank))

    def _append(self, memory: dict[str, Any], piece: Tensors) -> None:
        """A new piece; one without tensors is none."""
        if piece:
            pieces, count = memory.setdefault("pieces", []), memory.get("count", 0)
            pieces.append([count, [[name, tensor] for name, tensor in piece.items()]])
            memory["count"] = count + 1

    def end_stage(self, bank: Tensors, memory: dict[str, Any]) -> tuple[Tensors, float | None]:
        pieces = [dict(tensors) for _, tensors in memory.get("pieces", [])]
        memory["pieces"] = []
        return recompressed(bank, [*self._terms(bank), *pieces]) if pieces else (bank, None)

    def _terms(self, bank: Tensors) -> list[Tensors]:
        """What the model of a stage consists of beside the pieces."""
        return [bank]


class Flora(Stacked):
    """FLoRA (Wang et al., 2024, arXiv 2409.05976 [M]): clients train fresh factors, whose stack joins the frozen model.

    With w_k = n_k / N, the server stacks a round's updates along the rank,

        A_s = [w_1 A_1; ...; w_K A_K],   B_s = [B_1, ..., B_K],   B_s A_s = sum_k w_k B_k A_k exactly,

    for any ranks r_k: all have the scale s = alpha / ``adapter.rank``, as alpha_k = 2 r_k in the published code. In
    the next round every client trains a fresh pair (A random, B = 0) on W_0 + s (sum of the subspace and all stacks of
    the stage). As written in the public code ATP-1010/FederatedLLM; its published comparison with FedIT is not to be
    relied on, because that baseline keeps the first client's update only.

    Where a run has one adapter per subspace: a stage begins with the subspace as its first piece, and ends with the sum
    recompressed to ``adapter.rank`` (ours [D]; FLoRA merges into the backbone). Down go, per client, its fresh factors
    and, once each, pieces of K r numbers per width and round; up goes one pair of factors. The server draws fresh
    factors from (seed, subspace, piece), the same for all clients of a round.
    """

    summary = "updates stacked into the stage's frozen model, recompressed at its end (FLoRA); exact within a stage"
    adds_itself = True

    def added(self, ranks: Sequence[int]) -> int:
        return sum(ranks)

    def __init__(self) -> None:
        self._fresh: dict[str, tuple[tuple[int, int], Tensors]] = {}  # of the rounds at hand, by subspace

    def outgoing(self, home: str, bank: Tensors, memory: dict[str, Any], seed: int) -> Tensors:
        """Fresh factors in the place of the subspace's; the same objects for all clients of a round."""
        owner = seed, memory.get("count", 0)
        known, fresh = self._fresh.get(home, (None, {}))
        if known != owner:
            rng = seeding.generator(seed, "fresh factors", home, owner[1])
            shapes = {name: bank[name].shape for name in sorted(bank) if is_factor(name)}
            drawn = {n: rng.normal(0.0, _STD, shape) if A in n else np.zeros(shape) for n, shape in shapes.items()}
            fresh = {name: tensor.astype(np.float32) for name, tensor in drawn.items()}
            self._fresh[home] = owner, fresh
        return {**bank, **fresh}

    def end_stage(self, bank: Tensors, memory: dict[str, Any]) -> tuple[Tensors, float | None]:
        self._fresh.clear()
        return super().end_stage(bank, memory)

    def constants(self, home: str, bank: Tensors, memory: dict[str, Any]) -> dict[str, Tensors]:
        if memory.get("pieces"):
            return super().constants(home, bank, memory)
        begin = _product(bank)
        return {f"{home}.{memory.get('count', 0)}": begin} if begin else {}

    def combine(
        self, layers: dict[str, Any], old: Tensors, mean: Tensors, memory: dict[str, Any]
    ) -> tuple[Tensors, float | None]:
        """The mean of all that is no factor; the stack becomes a piece, the subspace stays until the stage ends."""
        rest = {name: tensor for name, tensor in mean.items() if not is_factor(name)}
        if not layers:
            return rest, None
        stacks: Tensors = {}
        for name, layer in layers.items():
            stacks[name.replace(A, B)], stacks[name] = layer.stack()
        _, missed = super().combine(layers, old, stacks, memory)
        if not memory.get("pieces"):
            self._append(memory, _product(old))
        self._append(memory, stacks)
        return rest, missed

    def _terms(self, bank: Tensors) -> list[Tensors]:
        return []  # the subspace is the first piece


class FedEx(Stacked):
    """FedEx-LoRA (Singhal et al., 2024, arXiv 2410.09432): mean factors, and the residual that makes them exact [C].

        A' = sum_k w_k A_k,   B' = sum_k w_k B_k,   R = sum_k w_k B_k A_k - B' A',   W <- W + s R

    R is sent factored, by its singular vectors: of rank at most (K - 1) r, because sum_k w_k (B_k - B') = 0 and R =
    sum_k w_k (B_k - B')(A_k - A'). Every client adds the same residuals, also one that was absent: it is sent those it
    missed, and their bytes count. w_k = n_k / N; the public code (RaghavSinghal10/fedex-lora) has w_k = 1 / K, and adds
    R transposed on square layers, which is not repeated. Clients go on from the same factors: all need one rank.

    Where a run has one adapter per subspace, the mean factors and the residuals of a stage are recompressed to
    ``adapter.rank`` at its end (ours [D]; FedEx-LoRA keeps them in the backbone).
    """

    summary = "mean factors, and the residual of their product sent factored (FedEx-LoRA); exact within a stage"
    mixes_ranks = False

    def added(self, ranks: Sequence[int]) -> int:
        return sum(ranks[1:])

    def combine(
        self, layers: dict[str, Any], old: Tensors, mean: Tensors, memory: dict[str, Any]
    ) -> tuple[Tensors, float | None]:
        """The means as of ``separate``, and how far they are from W; what is lacking becomes a piece."""
        piece: Tensors = {}
        for name, layer in layers.items():
            left, right = layer.residual(mean[name.replace(A, B)], mean[name])
            if len(right):
                piece |= {name.replace(A, B): left, name: right}
        self._append(memory, piece)
        return super().combine(layers, old, mean, memory)


def _product(bank: Tensors) -> Tensors:
    """The factors of a subspace; none if its product is zero."""
    factors = {name: tensor for name, tensor in bank.items() if is_factor(name)}
    return factors if any(tensor.any() for name, tensor in factors.items() if B in name) else {}


def chunks(pieces: Iterable[Tensors], rank: int) -> list[Tensors]:
    """The sum of products as subspaces of one rank: stacked, cut into parts of ``rank``, the last filled with zeros.

    Args:
        pieces: factors by name; A ``(m, d_in)`` and B ``(d_out, m)`` with an m of each piece and layer.
    """
    stacks: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        for name, tensor in piece.items():
            stacks.setdefault(name, []).append(tensor)
    joined = {name: np.concatenate(parts, axis=0 if A in name else 1) for name, parts in stacks.items()}
    longest = max((len(tensor) for name, tensor in joined.items() if A in name), default=0)
    count = -(-longest // rank)
    whole = {name: padded(name, tensor, count * rank) for name, tensor in joined.items()}
    parts = [slice(i * rank, (i + 1) * rank) for i in range(count)]
    return [{n: np.ascontiguousarray(t[part] if A in n else t[:, part]) for n, t in whole.items()} for part in parts]


def recompressed(bank: Tensors, terms: list[Tensors]) -> tuple[Tensors, float]:
    """A subspace with the best approximation, at its rank, of the sum of these products.

    Args:
        bank: the subspace, whose other tensors, and scale and further directions of A, the result has.

    Returns:
        the subspace, and ||W - B A||_F / ||W||_F over all layers (0 if W is 0).
    """
    from fcit.fedopt.products import Products

    new, missed, total = dict(bank), 0.0, 0.0
    for name, old in bank.items():
        pairs = [(term[name.replace(A, B)], term[name]) for term in terms if A in name and name in term]
        if not pairs:
            continue
        sums = Products.of(pairs)
        a, b = factored(*sums.svd(), old)
        new[name], new[name.replace(A, B)] = a, b
        missed += sums.distance(b, a) ** 2
        total += sums.norm() ** 2
    return new, float(np.sqrt(missed / total)) if total else 0.0
