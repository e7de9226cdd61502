"""PRISM: MoELoRA whose experts learn outside of the main directions of their own earlier gradients.

Paper: Wu et al., "PRISM: Exposing and Resolving Spurious Isolation in Federated Multimodal Continual Learning" (arXiv
2605.01061). What is here follows the released code (beining1008/POLARIS-FMCL) as it was read; of the paper only the
abstract was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.io.trees import Tensors
from fcit.methods.base import ServerState, Session, Update
from fcit.methods.directions import Covariance, after_step, before_step, eigenvalues, leading, rescaled, unit
from fcit.methods.moelora import MoELoRA
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import GATE, A, B, Layout, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Far above the root of any sum of squared gradients; one such client would decide every direction.
ABSURD = 1e6
#: Clients' covariances are united exactly up to so many times a layer's budget of rows, and nearly so beyond.
_ROOM = 32
_INTERFERENCE = "interference"


class Prism(MoELoRA):
    """MoELoRA with a basis U for every layer, expert and side, out of which its steps are projected.

    With the gradients G_A ``(r, d_in)`` and G_B^T ``(r, d_out)`` of an expert's factors, projected as its steps are,
    and its share p of the gates' weights in a step, clients sum up a covariance for either side, and the server unites
    it with the basis of the stages before (PE-FOSU). b is the layer's budget:

        M_k = sum over steps p G^T G,   U Lambda U^T <- b main directions of U Lambda U^T + sum_k n_k M_k / sum_k n_k

    From the second stage on steps are projected on both sides, with c from 0 to 1 in the first epoch of a stage:

        dA <- dA - c dA U_A U_A^T,   dB <- dB - c U_B U_B^T dB

    Interference Gamma of a layer is the share of its gradients' squares, weighted by p, that lies within the bases;
    clients measure it in a stage's first round, and it is averaged over clients and stages. After a stage the budgets
    for the next are ``budget`` on average and in proportion to Gamma^2, but at most ``fill`` times a layer's effective
    rank; what one layer cannot hold flows to the others (water-filling). The rank counts eigenvalues of at least
    ``tail`` times the largest, of the stage's covariance over all clients and experts, on the side that has more.

    Why the mean is safe: all clients of a stage move in the complement of the same U, and so does their mean, to
    rounding (``federation.wire`` rounds, too). That holds for steps with c = 1, with ``warmup: 0`` for all; not with
    optimisers or rules that treat every number by itself (``fedadam``, ``median``), and not with a server's momentum
    (``fedavgm``), which brings along moves of stages before.

    Ours: two sides, so that layers need not be square (the code adds both into one matrix); clients hold a few rows
    instead of matrices d x d, of the steps of a stage's last round, in which alone they are sent (the code's stages
    have one round); steps are projected and not gradients (``project``), of which AdamW makes steps that leave the
    complement. In the code the sum of the budgets is that of the caps, so that every layer gets its cap and nothing is
    shared; a block of the model has one budget, here every layer, and at least one direction. And its gate is a softmax
    over the ``top`` chosen, which of one is always 1: the gate has no gradient and stays as it was drawn. Here the
    chosen keep their weights (:func:`fcit.models.hooks.gate_weights`), so that it learns; as there in the first stage
    only. The projector is not protected. Steps that overflow in float16 count for nothing.
    """

    class Options(MoELoRA.Options):
        """Defaults are those of the released code."""

        top: int = Field(1, ge=1, description="experts that act on a token, at most ``experts``; all: MoELoRA's gate")
        budget: int = Field(14, ge=1, description="directions of an expert on one side, on average over layers")
        fill: float = Field(0.75, gt=0, le=1, description="share of a layer's effective rank that its budget can reach")
        tail: float = Field(1e-3, gt=0, lt=1, description="share of the largest eigenvalue that counts as a direction")
        warmup: float = Field(1.0, ge=0, description="epochs of a stage's first round in which c grows from 0 to 1")
        project: Literal["update", "gradient"] = Field(
            "update", description="what is projected: the optimiser's step (ours), or the gradient before it"
        )

        @model_validator(mode="after")
        def _no_more_than_there_are(self) -> Self:
            if self.top > self.experts:
                raise ValueError(f"top: {self.top} is more than experts: {self.experts}; choose 1 to {self.experts}")
            return self

    name = "prism"
    family = "regularisation"
    by_round = True
    summary = "MoELoRA whose experts learn outside of their own earlier gradients' directions"
    by_record = False  # clients send directions of gradients, plain sums over steps
    #: Not alternate: directions are of a stage's last round, interference of its first, each of one factor alone then.
    factors = frozenset({"separate", "frozen_a"})

    @property
    def layout(self) -> Layout:
        experts, top = self.options.experts, self.options.top
        return Layout(experts=experts, top=0 if top == experts else top)

    # ------------------------------------------------------------------ client

    def prepare(self, session: Session) -> None:
        notes, trained = session.notes, session.adapters.trainable
        bases = {name: rows for group in session.constants.values() for name, rows in group.items()}
        layers = sorted(name for name in trained if A in name)
        notes["budgets"] = dict(zip(layers, session.brief["budgets"], strict=True))
        notes["bases"] = {n: unit(torch.from_numpy(rows).to(trained[n].device)) for n, rows in bases.items()}
        notes["inside"] = {name: torch.zeros(2, dtype=torch.float64) for name in layers}
        notes["covariances"], notes["step"] = {}, 0
        if session.last_round or (notes["bases"] and session.round == 0):
            sums = {n: torch.zeros(len(p), device=p.device) for n, p in trained.items() if GATE in n}
            notes.update(sums)  # each a note of its own: put back when a batch is tried again
            session.adapters.sum_gates(sums)

    def on_gradients(self, session: Session) -> None:
        notes, options = session.notes, self.options
        notes["steer"] = steer = partial(self._projected, notes["bases"], self._strength(session))
        if notes["bases"] and session.round == 0:
            self._count_interference(session)
        if notes["bases"]:
            before_step(session, notes["bases"], steer, options.project)
        if session.last_round:
            for name, gradient in self._gradients(session):
                projected = steer(name, gradient) if options.project == "update" else gradient
                rows = self._by_expert(name, projected) * _shares(session, name).sqrt()
                room = 2 * notes["budgets"][_layer(name)]
                notes["covariances"].setdefault(name, Covariance(room)).add(rows)
        for name in [n for n in notes if GATE in n]:
            notes[name].zero_()

    def on_step(self, session: Session) -> None:
        after_step(session, session.notes["steer"])
        session.notes["step"] += 1

    def finish(self, session: Session) -> Tensors:
        sent: Tensors = {}
        if session.notes["bases"] and session.round == 0:
            parts = [float(inside / total) if total else 0.0 for inside, total in session.notes["inside"].values()]
            sent[_INTERFERENCE] = np.array(parts, dtype=np.float32)
        if session.last_round:
            for layer, budget in session.notes["budgets"].items():
                for name in (layer, layer.replace(A, B)):
                    rows = self._by_expert(name, torch.zeros_like(session.adapters.trainable[name].detach()))
                    if name in session.notes["covariances"]:  # else it was not trained
                        rows = session.notes["covariances"][name].rows
                    sent[name] = leading(rows, budget).float().cpu().numpy()
        return sent

    def _strength(self, session: Session) -> float:
        """c of a step."""
        epoch = math.ceil(len(session.examples) / self.config.training.batch_size)
        ramp = math.ceil(self.options.warmup * epoch)
        return 1.0 if session.round or not ramp else min(1.0, (session.notes["step"] + 1) / ramp)

    def _count_interference(self, session: Session) -> None:
        for name, gradient in self._gradients(session):
            rows = self._by_expert(name, gradient) * _shares(session, name).sqrt()
            inside = (rows @ session.notes["bases"][name].mT).double().square().sum()
            session.notes["inside"][_layer(name)] += torch.stack([inside, rows.double().square().sum()]).cpu()

    @staticmethod
    def _gradients(session: Session) -> list[tuple[str, torch.Tensor]]:
        """Of all factors; none of a step that overflows."""
        trained = session.adapters.trainable
        gradients = [(n, p.grad.detach()) for n, p in trained.items() if is_factor(n) and p.grad is not None]
        return gradients if all(bool(torch.isfinite(gradient).all()) for _, gradient in gradients) else []

    def _by_expert(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A ``(E r, d)`` or B ``(d, E r)`` as rows of each expert ``(E, r, d)``."""
        rows = value if A in name else value.T
        return rows.reshape(self.options.experts, -1, rows.shape[-1])

    def _projected(
        self, bases: dict[str, torch.Tensor], strength: float, name: str, step: torch.Tensor
    ) -> torch.Tensor:
        """A step of A or B without the share c of what lies within the bases."""
        if name not in bases:
            return step
        rows = rescaled(self._by_expert(name, step), bases[name], 1 - strength).flatten(0, 1)
        return rows if A in name else rows.T

    def held(self, shape: Shape, stages: int) -> Held:
        """As if every layer had the mean budget; with a larger one a wide layer takes more."""
        main = 4.0 * self.options.experts * self.options.budget * sum(width + out for width, out in shape.adapted)
        return Held(
            training={
                "directions, and a stage's": 3 * main,
                "adapter before a step": subspace_bytes(self.config, shape),
            },
            client={"directions": main},
            server={"directions": main, "directions of a stage": _ROOM * main},
        )

    # ------------------------------------------------------------------ server

    def frozen(self, names: Iterable[str], stage: int) -> list[str]:
        return [name for name in names if GATE in name] if stage else []

    def brief(self, state: ServerState) -> dict[str, Any]:
        """Every layer's budget, in the order of the layers' names: as a tensor it would be rounded on a short wire."""
        return {"budgets": [budget for _, budget in sorted(self._kept(state).items())]}

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        # Groups called bases held the budgets, too: who goes on with an older run's checkpoint is sent these anew.
        return {f"directions-{state.memory['stage']}": state.memory["bases"]} if "bases" in state.memory else {}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        subspace, experts = state.subspaces["0"], self.options.experts
        budgets, shapes = self._kept(state), dict[str, tuple[int, ...]]()
        if state.round == 0 and "bases" in state.memory:
            shapes[_INTERFERENCE] = (len(budgets),)
        if state.round == self.config.federation.rounds - 1:
            for name, budget in budgets.items():
                shapes[name] = (experts, budget, subspace[name].shape[1])
                shapes[name.replace(A, B)] = (experts, budget, subspace[name.replace(A, B)].shape[0])
        return shapes

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        largest = max((float(np.abs(t).max(initial=0)) for n, t in extra.items() if is_factor(n)), default=0.0)
        if largest > ABSURD:
            return f"a sum of gradients with {largest:.3g}, over {ABSURD:.0e}"
        shares = extra.get(_INTERFERENCE, np.zeros(0))
        if ((shares < 0) | (shares > 1.01)).any():
            return "an interference outside of 0 to 1"
        return None

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        interference, covariances, budgets = Mean(), dict[str, Covariance](), self._kept(state)
        records = 0

        def watched() -> Iterable[Update]:
            nonlocal records
            for update in updates:
                if _INTERFERENCE in update.extra:
                    interference.add({_INTERFERENCE: update.extra[_INTERFERENCE]}, update.examples)
                factors = [name for name in update.extra if is_factor(name)]
                records += update.examples if factors else 0
                for name in factors:
                    rows = torch.from_numpy(update.extra[name]) * update.examples**0.5
                    covariances.setdefault(name, Covariance(_ROOM * budgets[_layer(name)])).add(rows)
                yield update

        super().aggregate(state, watched(), aggregator)
        if interference.weight:
            measured = state.memory.setdefault("interference", {})
            measured[str(state.stage)] = interference.result()[_INTERFERENCE]
        if records:
            state.memory["fresh"] = {name: (c.rows / records**0.5).numpy() for name, c in covariances.items()}

    def end_stage(self, state: ServerState, stage: int) -> None:
        memory, budgets = state.memory, self._kept(state)
        fresh: Tensors | None = memory.pop("fresh", None)
        if fresh is None:
            return
        old = memory.get("bases", {})
        memory["bases"] = {name: united(old.get(name), rows, budgets[_layer(name)]) for name, rows in fresh.items()}
        memory["budgets"], memory["stage"] = budgets, stage
        if measured := memory.get("interference"):
            layers = sorted(budgets)
            gamma: np.ndarray = np.stack(list(measured.values())).astype(np.float64).mean(axis=0)
            caps = [self._cap(fresh, layer) for layer in layers]
            memory["budgets"] = dict(
                zip(layers, allocated(gamma, caps, self.options.budget * len(layers)), strict=True)
            )

    def _cap(self, fresh: Tensors, layer: str) -> int:
        """The largest budget of a layer, from its covariances of one stage."""
        ranks = [effective_rank(fresh[name], self.options.tail) for name in (layer, layer.replace(A, B))]
        return max(1, int(self.options.fill * max(ranks)))

    def _kept(self, state: ServerState) -> dict[str, int]:
        """The budget of every layer in this stage, by the name of its A."""
        kept = state.memory.get("budgets")
        return dict(kept or self._first({name: t.shape for name, t in state.subspaces["0"].items()}))

    def _first(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Every layer's budget in the first stages."""
        widths = {n: min(shapes[n][1], shapes[n.replace(A, B)][0]) for n in sorted(shapes) if A in n}
        return {name: min(self.options.budget, width) for name, width in widths.items()}


def _layer(factor: str) -> str:
    """The name of the A of a factor's layer."""
    return factor.replace(B, A)


def _shares(session: Session, factor: str) -> torch.Tensor:
    """p of every expert ``(E, 1, 1)``: its share of the gates' weights since the last step."""
    weights = session.notes[_layer(factor).replace(A, GATE)]
    return (weights / weights.sum())[:, None, None]


def united(old: np.ndarray | None, fresh: np.ndarray, count: int) -> np.ndarray:
    """The main rows ``(E, count, d)`` of two sums of covariances, given as rows ``(E, q, d)``; None: no earlier one."""
    rows = fresh if old is None else np.concatenate([old, fresh], axis=1)
    return leading(torch.from_numpy(rows), count).float().numpy()


def effective_rank(rows: np.ndarray, tail: float) -> int:
    """Eigenvalues of the covariance of all experts' rows ``(E, q, d)`` of at least ``tail`` times the largest."""
    values = eigenvalues(torch.from_numpy(rows).flatten(0, 1))
    return int((values >= tail * values[0]).sum()) if values[0] > 0 else 0


def allocated(gamma: np.ndarray, caps: list[int], total: int) -> list[int]:
    """Budgets of layers that sum to ``total`` (the sum of the caps, if that is less), each from 1 to its cap.

    Beyond 1 they are in proportion to gamma^2 where that stays below the cap (if all are 0: equal), rounded by largest
    remainders.
    """
    room = np.array(caps) - 1
    left = min(total - len(caps), int(room.sum()))
    share, below = np.zeros(len(caps)), room > 0
    while below.any():
        weights = np.square(gamma) * below
        weights = weights if weights.sum() else below.astype(float)
        proposed = (left - share[~below].sum()) * weights / weights.sum()
        full = below & (proposed >= room)
        share[below] = np.where(full, room, proposed)[below]
        if not full.any():
            break
        below &= ~full
    whole = np.floor(share + 1e-9).astype(int)
    order = np.lexsort((np.arange(len(caps)), whole - share))
    for layer in [number for number in order if whole[number] < room[number]][: left - int(whole.sum())]:
        whole[layer] += 1
    return [int(number) + 1 for number in whole]
