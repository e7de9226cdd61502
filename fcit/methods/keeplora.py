"""KeepLoRA: each stage learns in the directions that its own gradient needs and that nothing earlier depends on.

Paper: "KeepLoRA" (ICLR 2026, arXiv 2601.19659). What is here follows the public toolbox MCITlib v3 as it was read; the
paper itself was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field

from fcit import seeding
from fcit.config import Section
from fcit.data.collate import images_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.fedopt.factors import completed
from fcit.fedopt.products import one_thread
from fcit.io.trees import Tensors
from fcit.methods.base import INVARIANTS, ServerState, Session, Update
from fcit.methods.per_stage import PerStage
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import A, B, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Far above any number in a sketch of a converging model's gradient; one such value would decide every direction.
ABSURD = 1e6


class KeepLoRA(PerStage):
    """One LoRA per stage; A comes from a gradient and stays as it is, only B is trained and sent.

    Before stage t, with G = dL/dW of a layer, averaged over clients and records:

        G' = G (I - P)
        A_t = the leading r right singular vectors of G'
        y = W0 x + s sum_{i<=t} B_i A_i x

    P projects onto what is protected: the right singular vectors of W0 that hold ``principal`` of its squares, and
    after each stage the leading directions of G' at the trained model, until with the earlier ones they hold
    ``protect`` of its squares. Averaging B alone is exact, as all clients have the same A.

    Ours, for the federation: clients send s Omega^T G instead of G (d_out x d_in numbers), Omega ``(d_out, r)`` with
    entries N(0, 1) from the seed, ``sketches`` times. That is the gradient of A where A = 0 and B = Omega, at an
    unchanged output, and the range finder of a randomised SVD (Halko et al., 2011, arXiv 0909.4061). It is additive,
    and so is the projection: clients apply that of W0, which the server does not have, the server that of earlier
    stages. Measuring costs an exchange before each stage, and one A per sketch there and with the last round; both are
    counted. ``protect`` is a share of what is outside of W0's directions. A layer without gradient keeps random
    rows. The projector, if it is trained, is not protected. Numbers above :data:`ABSURD` are rejected; below, a client
    weighs as its gradient is long (unit vectors would bound it, but be another mean than the gradient's).
    """

    class Options(Section):
        """``principal`` and ``protect`` are energies; shares of squares are our reading of the toolbox."""

        principal: float = Field(0.6, ge=0, lt=1, description="share of a frozen weight's squares that is protected")
        protect: float = Field(0.99, ge=0, lt=1, description="share of a stage's gradient that is protected afterwards")
        samples: float = Field(0.2, gt=0, le=1, description="share of a shard's records that are measured on, evenly")
        sketches: int = Field(2, ge=1, description="sketches of the gradient, each as large as A (ours)")

    name = "keeplora"
    family = "regularisation"
    by_round = True
    summary = "a LoRA per stage in unprotected directions of its gradient; only B is trained"
    answers = "Answers come from the sum of all subspaces; one alone is one term of it."
    measures = True
    whole_rank = "clients' sketches of the gradient are summed, and have the adapter's rank"
    #: A is never averaged.
    factors = frozenset({"separate", "frozen_a"})
    invariants = INVARIANTS - {"mix-sums-to-one"}

    # ------------------------------------------------------------------ client

    def measured_records(self, count: int) -> int:
        return int(np.ceil(self.options.samples * count))

    def measure(self, session: Session) -> Tensors:
        session.adapters.add_frozen(_earlier(session))
        return self._sketched(session)

    def prepare(self, session: Session) -> None:
        session.adapters.add_frozen(_earlier(session))

    def finish(self, session: Session) -> Tensors:
        if not session.last_round:
            return {}
        # The trained pair goes behind the slot, which is free for the sketch then.
        trained = session.adapters.read()
        session.adapters.add_frozen([*_earlier(session), {n: t for n, t in trained.items() if is_factor(n)}])
        sketches = self._sketched(session)
        session.adapters.load(trained)
        return sketches

    def _sketched(self, session: Session) -> Tensors:
        """The mean of s Omega^T G over chosen records, outside the main directions of W0; the slot stays as it is."""
        before = session.adapters.read()
        count = self.measured_records(len(session.examples))
        chosen = [session.examples[number * len(session.examples) // count] for number in range(count)]
        sketches: Tensors = {}
        for number in range(self.options.sketches):
            slot = {n: _sketching(session.seed, number, n, t) for n, t in before.items() if is_factor(n)}
            session.adapters.load(slot)
            for name, gradient in self._mean_gradients(session, chosen).items():
                kept = session.adapters.principal(name, self.options.principal).to(gradient)
                outside = gradient - (gradient @ kept.T) @ kept
                sketches[f"{number}:{name}"] = outside.cpu().numpy()
        session.adapters.load(before)
        return sketches

    @staticmethod
    def _mean_gradients(session: Session, chosen: list) -> dict[str, torch.Tensor]:
        """Of every A, record by record, without dropout."""
        factors = {n: p for n, p in session.adapters.trainable.items() if A in n}
        sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in factors.items()}
        with session.adapters.resting():
            for example in chosen:
                features = session.backbone.vision_features(session.image_root, images_of([example]))
                loss = session.backbone.loss([example], features)
                for name, gradient in zip(sums, torch.autograd.grad(loss, list(factors.values())), strict=True):
                    sums[name] += gradient.float()
        return {name: total / len(chosen) for name, total in sums.items()}

    # ------------------------------------------------------------------ server

    def frozen(self, names: Iterable[str], stage: int) -> list[str]:
        return [name for name in names if A in name]

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        return {f"frozen-{n}": tensors for n, tensors in state.subspaces.items() if int(n) < state.stage}

    def held(self, shape: Shape, stages: int) -> Held:
        """Of n directions, the share p of the squares is held by at most p n: all equal."""
        a, rows = self.config.adapter.rank * self.options.sketches, self.options.principal
        main = sum(math.ceil(rows * min(width, out)) * width for width, out in shape.adapted)
        return Held(
            device={"main directions of the weights": 4.0 * main},
            client={"earlier subspaces": (stages - 1) * subspace_bytes(self.config, shape, "per_subspace")},
            server={
                "protected directions": 4.0 * sum(min(stages * a, width) * width for width, _ in shape.adapted),
                "sketches of a stage": 4.0 * sum(a * width for width, _ in shape.adapted),
            },
        )

    def measured_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        factors = {n: t.shape for n, t in state.subspaces[str(state.stage)].items() if A in n}
        return {f"{number}:{n}": shape for number in range(self.options.sketches) for n, shape in factors.items()}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        return self.measured_shapes(state) if state.round == self.config.federation.rounds - 1 else {}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        largest = max((float(np.abs(sketch).max()) for sketch in extra.values() if sketch.size), default=0.0)
        return f"a sketch of a gradient with {largest:.3g}, over {ABSURD:.0e}" if largest > ABSURD else None

    def absorb(self, state: ServerState, measured: Iterable[Update]) -> None:
        mean, stage = Mean(), str(state.stage)
        for update in measured:
            mean.add(update.extra, update.examples)
        sketches, subspace = mean.result(), dict(state.subspaces[stage])
        for name, old in state.subspaces[stage].items():
            if A in name:
                protected = _protected(state, name)
                subspace[name] = leading(self._stacked(sketches, name), protected, old)
        state.subspaces[stage] = subspace

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        after = Mean()

        def watched() -> Iterable[Update]:
            for update in updates:
                if update.extra:
                    after.add(update.extra, update.examples)
                yield update

        super().aggregate(state, watched(), aggregator)
        if after.weight:
            state.memory["after"] = after.result()

    def end_stage(self, state: ServerState, stage: int) -> None:
        sketches = state.memory.pop("after", None)
        if sketches is None:
            return
        protected = state.memory.setdefault("protected", {})
        for name in [n for n in state.subspaces[str(stage)] if A in n]:
            rows, before = self._stacked(sketches, name), _protected(state, name)
            protected[name] = widened(before, rows, self.options.protect).astype(np.float32)

    def _stacked(self, sketches: Tensors, name: str) -> np.ndarray:
        return np.concatenate([sketches[f"{number}:{name}"] for number in range(self.options.sketches)])

    # ------------------------------------------------------------------ inference

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """Every subspace with weight one."""
        return np.ones((len(features), len(names)), dtype=np.float32)


def _earlier(session: Session) -> list[Tensors]:
    return [session.constants[n] for n in sorted(session.constants, key=lambda n: int(n.rpartition("-")[2]))]


def _sketching(seed: int, number: int, name: str, tensor: np.ndarray) -> np.ndarray:
    """A = 0, and B = Omega, the same for all clients."""
    if B not in name:
        return np.zeros_like(tensor)
    return seeding.generator(seed, "sketch", number, name).normal(size=tensor.shape).astype(np.float32)


def _protected(state: ServerState, name: str) -> np.ndarray:
    """The directions ``(k, d_in)`` of earlier stages, float64 and orthonormal."""
    known = state.memory.get("protected", {}).get(name)
    width = next(t.shape[1] for tensors in state.subspaces.values() for n, t in tensors.items() if n == name)
    return np.zeros((0, width)) if known is None else known.astype(np.float64)


#: Directions are kept above so many roundings of the numbers that were sent, in float32.
_ROUNDINGS = 10.0


@one_thread()
def _main(rows: np.ndarray, protected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right vectors ``(k, d)`` of what ``rows (q, d)`` have outside of what is protected.

    What is smaller than the rounding of the rows themselves, before the projection, is noise.
    """
    if not rows.any():
        return np.zeros(0), np.zeros((0, rows.shape[1]))
    size = float(torch.linalg.matrix_norm(torch.from_numpy(rows), 2))
    _, s, vt = torch.linalg.svd(torch.from_numpy(_outside(rows, protected)), full_matrices=False)
    kept = int((s > _ROUNDINGS * torch.finfo(torch.float32).eps * size).sum())
    directions = torch.from_numpy(_outside(vt[:kept].numpy(), protected))  # once more: a short rest magnifies errors
    q, r = torch.linalg.qr(directions.T)
    return s[:kept].numpy(), (q * r.diagonal().sign()).T.numpy()


def _outside(rows: np.ndarray, protected: np.ndarray) -> np.ndarray:
    return rows - rows @ protected.T @ protected


def leading(rows: np.ndarray, protected: np.ndarray, old: np.ndarray) -> np.ndarray:
    """A ``(r, d)`` for the sketch ``(q, d)`` of a gradient, outside of what is protected.

    If the gradient has fewer directions, the others come from the old A, outside of both; if it has none either, they
    are zero.
    """
    rows = rows.astype(np.float64)
    _, directions = _main(rows, protected)
    directions = directions[: len(old)]
    more = completed(np.vstack([protected, directions]), old, len(old) - len(directions))
    a = np.zeros(old.shape, dtype=np.float32)
    a[: len(directions) + len(more)] = np.vstack([directions, more])
    return a


def widened(protected: np.ndarray, rows: np.ndarray, share: float) -> np.ndarray:
    """Protected directions with the fewest further ones that hold a share of the squares of ``rows (q, d)``."""
    rows = rows.astype(np.float64)
    outside = _outside(rows, protected)
    s, directions = _main(rows, protected)
    whole = float(np.square(rows).sum())
    held = whole - float(np.square(outside).sum()) + np.concatenate([[0.0], np.cumsum(np.square(s))])
    count = min(int((held < share * whole).sum()), len(s))
    return np.vstack([protected, directions[:count]])
