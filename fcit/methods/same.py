"""SAME: MoELoRA that moves little where inputs of earlier stages lie, and lets experts rest that these depend on.

Paper: Xie et al., "SAME: Stabilized Mixture-of-Experts for Multimodal Continual Instruction Tuning" (ICML 2026, arXiv
2602.01990). Its equations are from summaries of its text, the constants from the released code (LAMDA-CL/Prism).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field

from fcit.data.collate import images_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.io.trees import Tensors
from fcit.methods.base import Pair, ServerState, Session, Update
from fcit.methods.directions import Covariance, after_step, before_step, leading, rescaled, unit
from fcit.methods.moelora import MoELoRA
from fcit.methods.views import Held, subspace_bytes
from fcit.models.hooks import gate_weights
from fcit.models.layout import GATE, A, B, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Far above the root mean square of any layer's input in a direction; one such client would decide every direction.
ABSURD = 1e6
#: Clients' covariances are united exactly up to so many times ``rank`` rows, and nearly so beyond.
_ROOM = 16


class SAME(MoELoRA):
    """MoELoRA whose steps from the second stage on are made smaller where inputs of earlier stages were.

    C is the uncentred covariance of a layer's inputs over all stages so far, of which the main eigenvectors V_k with
    eigenvalues sigma are kept. Alpha_t counts records, C^ is the clients' mean:

        C_t = (alpha_{t-1} C_{t-1} + n_t C^_t) / alpha_t,   alpha_t = alpha_{t-1} + n_t

    Steps of the gate's W_g and of the experts' A, each with the main directions of its layer:

        dW_g <- dW_g (V_k g(sigma) V_k^T + I - V_k V_k^T),   sum_{i<=k} sigma_i^2 >= energy sum_i sigma_i^2
        dA   <- dA mu C^-1,   C^-1 = V_k (sigma + mu I)^-1 V_k^T + (1 / mu) (I - V_k V_k^T)

    g_i = sigma_{k+1} / (mean of sigma_i and the ``window`` - 1 before it). Experts with a low score rest in a stage:
    their A and B keep their bits. U_i is the mean weight of expert i in the new stage, F_i that of its weight times
    ||x||^2 in earlier ones:

        score_i = minmax(U)_i - minmax(F)_i < threshold

    Ours, for the federation: maps and scores are made by the server before a stage and are the same for all clients,
    so that the mean of their steps obeys them, too. So W_g's map has C_{t-1} (paper: C_t, as it grows), and the first
    stage is MoELoRA. The clients of a stage's first round measure U, those of its last C^ and F, on ``samples`` records
    each.

    Ours, where the text leaves it open: g continues the 1 outside of V_k (released code: divided by its largest and
    clamped to [0.8, 1.2], see ``least``; one summary has sigma_i in the numerator); mu C^-1 is 1 outside, as AdamW
    undoes constants; and maps are of the optimiser's steps (``apply``), as AdamW's division of every number by its own
    size undoes most of what is done to a gradient. Unlike the released code: C is not the centred covariance of the
    latest batch, and sigma no standard deviation; every token has a gate of its own, also at inference, and not one
    averaged over a batch, on which an answer would depend; no expert belongs to a task (there expert t never rests,
    here that of the best score); products are sum_i g_i B_i A_i, without terms B_i A_j. As there, B has no map, so that
    its steps can change old answers, and neither has the projector.
    """

    class Options(MoELoRA.Options):
        """``energy`` is the paper's delta, ``damping`` its mu, ``window`` its rho, ``threshold`` its tau."""

        rank: int = Field(64, ge=1, description="directions kept of a layer's inputs; 64: the released code")
        energy: float = Field(0.9, gt=0, le=1, description="share of sigma^2 that the main directions hold (delta)")
        damping: float = Field(0.9, gt=0, description="mu, in squares of an input; 0.9: the paper, the code")
        window: int = Field(3, ge=1, description="eigenvalues that g averages over; 3: the released code")
        least: float = Field(0.0, ge=0, le=1, description="smallest g; 0: the paper; 0.8: the released code")
        threshold: float = Field(0.1, ge=-1, le=1, description="score below which an expert rests (tau); -1: none does")
        samples: int = Field(32, ge=1, description="records of a shard that a client measures on (ours)")
        apply: Literal["update", "gradient"] = Field(
            "update",
            description="what is mapped: the optimiser's step (our definition), or the gradient before it (paper), "
            "most of which AdamW undoes; its weight decay then moves experts at rest",
        )

    name = "same"
    family = "regularisation"
    by_round = True
    summary = "MoELoRA whose gates and experts move little where earlier inputs lie; some experts rest"
    measures = True
    by_record = False  # clients send covariances of inputs

    # ------------------------------------------------------------------ client

    def measured_records(self, count: int) -> int:
        return min(count, self.options.samples)

    def measure(self, session: Session) -> Tensors:
        """U of every layer."""
        sums: dict[str, torch.Tensor] = {}

        def see(name: str, inputs: torch.Tensor) -> None:
            weights = gate_weights(inputs, session.adapters.trainable[_gate(name)]).float().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0.0) + weights

        self._show_records(session, see)
        return {_gate(name): (total / total.sum()).cpu().numpy() for name, total in sums.items()}

    def prepare(self, session: Session) -> None:
        maps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for spectra in session.constants.values():
            for name, rows in spectra.items():
                spectrum = torch.from_numpy(rows).to(session.adapters.trainable[name].device)
                maps[name] = damped(spectrum, self.options.energy, self.options.damping)
                maps[_gate(name)] = routed(spectrum, self.options.energy, self.options.window, self.options.least)
        session.notes["maps"] = maps

    def on_gradients(self, session: Session) -> None:
        if session.notes["maps"]:
            names = [name for name in session.adapters.trainable if is_factor(name) or GATE in name]
            before_step(session, names, partial(self._steered, session), self.options.apply)

    def on_step(self, session: Session) -> None:
        after_step(session, partial(self._steered, session))

    @staticmethod
    def _steered(session: Session, name: str, step: torch.Tensor) -> torch.Tensor:
        """A step of W_g, A or B under the maps of its layer; 0 for experts at rest."""
        if name in session.notes["maps"]:
            step = rescaled(step, *session.notes["maps"][name])
        awake = session.received.get(name.replace(A, GATE).replace(B, GATE))
        if awake is None or not is_factor(name):
            return step
        axis = 0 if A in name else 1
        ranks = torch.from_numpy(awake).to(step).repeat_interleave(step.shape[axis] // len(awake))
        return step * (ranks[:, None] if axis == 0 else ranks)

    def finish(self, session: Session) -> Tensors:
        """C^ as its main rows, and F, of every layer."""
        if not session.last_round:
            return {}
        covariances: dict[str, Covariance] = {}
        energies: dict[str, torch.Tensor] = {}
        tokens: dict[str, int] = {}

        def see(name: str, inputs: torch.Tensor) -> None:
            rows = inputs.float().flatten(0, -2)
            weights = gate_weights(rows, session.adapters.trainable[_gate(name)]).float()
            covariances.setdefault(name, Covariance(2 * self.options.rank)).add(rows)
            energies[name] = energies.get(name, 0.0) + (weights * rows.square().sum(-1, keepdim=True)).sum(0)
            tokens[name] = tokens.get(name, 0) + len(rows)

        self._show_records(session, see)
        measured: Tensors = {}
        for name, covariance in covariances.items():
            main = leading(covariance.rows, self._count(covariance.rows.shape[-1])) / np.sqrt(tokens[name])
            measured[name] = main.float().cpu().numpy()
            measured[_gate(name)] = (energies[name] / tokens[name]).cpu().numpy()
        return measured

    def _show_records(self, session: Session, see: Callable[[str, torch.Tensor], None]) -> None:
        """Show every layer's inputs for some records, one by one, without dropout: padding would count, too."""
        session.adapters.show_inputs(see)
        chosen = session.generator("inputs").permutation(len(session.examples))[: self.options.samples]
        with session.adapters.resting(), torch.no_grad():
            for index in chosen:
                example = [session.examples[int(index)]]
                session.backbone.loss(example, session.backbone.vision_features(session.image_root, images_of(example)))

    def _count(self, width: int) -> int:
        return min(self.options.rank, width)

    def held(self, shape: Shape, stages: int) -> Held:
        main = 4.0 * sum(self._count(width) * width for width, _ in shape.adapted)
        return Held(
            training={
                "directions, for gates and factors": 2 * main,
                "adapter before a step": subspace_bytes(self.config, shape),
            },
            client={"directions": main},
            server={"directions": main, "directions of a stage": _ROOM * main},
        )

    # ------------------------------------------------------------------ server

    def measuring(self, stage: int) -> bool:
        return stage > 0 and self.options.threshold > -1

    def measured_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        return {name: (self.options.experts,) for name in state.subspaces["0"] if GATE in name}

    def absorb(self, state: ServerState, measured: Iterable[Update]) -> None:
        mean, earlier = Mean(), state.memory.get("importance", {})
        for update in measured:
            mean.add(update.extra, update.examples)
        scores = {gate: awake(use, earlier[gate], self.options.threshold) for gate, use in mean.result().items()}
        state.memory["awake"] = scores

    def broadcast(self, state: ServerState, pair: Pair) -> Tensors:
        return dict(state.memory.get("awake", {}))

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        spectra = state.memory.get("spectra")
        return {} if spectra is None else {f"spectra-{state.memory['stage']}": spectra}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        if state.round < self.config.federation.rounds - 1:
            return {}
        widths = {n: t.shape[1] for n, t in state.subspaces["0"].items() if A in n}
        return self.measured_shapes(state) | {name: (self._count(width), width) for name, width in widths.items()}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        largest = max((float(np.abs(tensor).max(initial=0)) for name, tensor in extra.items() if A in name), default=0)
        if largest > ABSURD:
            return f"inputs of a layer with {largest:.3g}, over {ABSURD:.0e}"
        if any((tensor < 0).any() for name, tensor in extra.items() if GATE in name):
            return "a use or an importance of an expert below 0"
        return None

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        energies, inputs = Mean(), dict[str, Covariance]()

        def watched() -> Iterable[Update]:
            for update in updates:
                if update.extra:
                    energies.add({n: t for n, t in update.extra.items() if GATE in n}, update.examples)
                for name in [n for n in update.extra if A in n]:
                    rows = torch.from_numpy(update.extra[name]) * update.examples**0.5
                    inputs.setdefault(name, Covariance(_ROOM * self.options.rank)).add(rows)
                yield update

        super().aggregate(state, watched(), aggregator)
        if energies.weight:
            rows = {n: (covariance.rows / energies.weight**0.5).numpy() for n, covariance in inputs.items()}
            state.memory["fresh"] = {"records": energies.weight, "rows": rows, "energies": energies.result()}

    def end_stage(self, state: ServerState, stage: int) -> None:
        memory = state.memory
        fresh = memory.pop("fresh", None)
        memory.pop("awake", None)
        if fresh is None:
            return
        old, new = memory.get("records", 0), fresh["records"]  # alpha_{t-1}, n_t
        spectra, importance = memory.get("spectra", {}), memory.get("importance", {})
        memory["spectra"] = {
            name: united([(old, spectra.get(name)), (new, rows)], self._count(rows.shape[1]))
            for name, rows in fresh["rows"].items()
        }
        memory["importance"] = {
            gate: ((old * importance.get(gate, 0.0) + new * energy) / (old + new)).astype(np.float32)
            for gate, energy in fresh["energies"].items()
        }
        memory["records"], memory["stage"] = old + new, stage


def _gate(name: str) -> str:
    """The name of the gate of an A's layer."""
    return name.replace(A, GATE)


def united(parts: list[tuple[int, np.ndarray | None]], count: int) -> np.ndarray:
    """The main rows of the weighted mean of covariances, given as weights and rows; None with weight 0."""
    whole = sum(weight for weight, _ in parts)
    rows = [torch.from_numpy(part) * (weight / whole) ** 0.5 for weight, part in parts if part is not None]
    return leading(torch.cat(rows), count).float().numpy()


def _main(spectrum: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Directions, eigenvalues and how many of the first hold a share of the sum of their squares."""
    sigma = spectrum.square().sum(-1)
    held = sigma.square().cumsum(0)
    return unit(spectrum), sigma, min(int((held < energy * held[-1]).sum()) + 1, int((sigma > 0).sum()))


def damped(spectrum: torch.Tensor, energy: float, mu: float) -> tuple[torch.Tensor, torch.Tensor]:
    """V_k and the scales mu / (sigma + mu) of mu C^-1, which is 1 outside.

    Args:
        spectrum: rows sqrt(sigma_i) v_i ``(n, d)``, largest first.
    """
    directions, sigma, kept = _main(spectrum, energy)
    return directions[:kept], mu / (sigma[:kept] + mu)


def routed(spectrum: torch.Tensor, energy: float, window: int, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """V_k and g: the first eigenvalue outside (the last, if there is none) over windowed means, at least ``least``.

    Args:
        spectrum: rows sqrt(sigma_i) v_i ``(n, d)``, largest first.
    """
    directions, sigma, kept = _main(spectrum, energy)
    means = torch.stack([sigma[max(0, i + 1 - window) : i + 1].mean() for i in range(kept)]) if kept else sigma[:0]
    outside = sigma[kept : kept + 1] if bool(sigma[kept:].any()) else sigma[kept - 1 : kept]
    return directions[:kept], (outside / means).clamp(min=least)


def awake(use: np.ndarray, importance: np.ndarray, threshold: float) -> np.ndarray:
    """1 for the experts ``(E,)`` of a layer that train in a stage, 0 for those at rest; the best score never rests."""
    scores = _minmax(use) - _minmax(importance)
    return ((scores >= threshold) | (np.arange(len(scores)) == scores.argmax())).astype(np.float32)


def _minmax(values: np.ndarray) -> np.ndarray:
    """Values between 0 and 1; all 0 if they are equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
