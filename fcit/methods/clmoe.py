"""CL-MoE: MoELoRA whose experts the server merges by their role, with a second gate from what tasks used.

Paper: Huai et al., "CL-MoE: Enhancing Multimodal Large Language Model with Dual Momentum Mixture-of-Experts for
Continual Visual Question Answering" (CVPR 2025, arXiv 2503.00413). Its two equations are from a summary of its text,
the constants from the released code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field

from fcit.config import RunConfig
from fcit.data.collate import images_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import Mean
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Pair, QuestionBatch, ServerState, Session, Stats, Update
from fcit.methods.knowledge_cache import cosine, count_once
from fcit.methods.moelora import MoELoRA
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import GATE, A, B

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class CLMoE(MoELoRA):
    """MoELoRA in training; at the end of a stage a merge, at inference two gates.

    theta_t = lambda theta_{t-1} + (1 - lambda) phi_t, expert by expert
    y = W0 x + s sum_i (blend G_i(x) + (1 - blend) G_i(t)) B_i A_i x

    phi_t is what a stage has trained, from theta_{t-1} on, and G(x) the gate of MoELoRA. G(t) is how often an expert of
    a layer was among the ``top`` of a token's gate in stage t, as a share; the clients of a stage's last round count it
    on ``samples`` records each, and the server averages by records. lambda depends on the role of an expert: among the
    ``top`` of both stages, of the one before only, of the new one only, or of none. Gates are those of the new stage.

    The lambdas are those of the authors' merge script, the only place they were read in; an expert that the stage
    before alone used is there mostly replaced, where one would expect the opposite. In the released code it changes
    nothing (it compares prefixes of names that never match), usage is counted in few forward passes, and the blend is
    left out; toolboxes that list the method train MoELoRA. Here the equations take effect, so figures of others do not
    carry over; ``release: inert`` leaves merge and second gate out, which is MoELoRA to the bit: clients describe,
    count and send nothing more. Roles are told layer by layer (the script: for all layers together).

    Ours: at inference nobody names the task t, so G(t) is that of the stage whose records' mean text feature is most
    similar to the question.
    """

    class Options(MoELoRA.Options):
        """``blend`` is the paper's beta."""

        release: Literal["equations", "inert"] = Field(
            "equations", description="inert: neither merge nor second gate, as the released code runs (MoELoRA)"
        )
        blend: float = Field(0.5, ge=0, le=1, description="share of the token's gate at inference; 0.5: the authors")
        top: int = Field(2, ge=1, description="experts of a token, and of a stage, that count as used; 2: the authors")
        samples: int = Field(32, ge=1, description="records of a shard that a client counts on (ours)")
        keep_both: float = Field(0.7, ge=0, le=1, description="lambda of experts that both stages use (merge script)")
        keep_old: float = Field(0.3, ge=0, le=1, description="of those that the stage before alone uses (merge script)")
        keep_new: float = Field(0.7, ge=0, le=1, description="of those that the new stage alone uses (merge script)")
        keep_other: float = Field(0.7, ge=0, le=1, description="of all others (merge script)")

    name = "clmoe"
    family = "routing"
    by_round = True
    summary = "MoELoRA with a merge of experts by their role and a second gate from what stages used"
    needs_stats = True
    refactors = True
    by_record = False  # clients count on records what gates choose

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        if self._inert:
            self.by_round = self.needs_stats = self.refactors = False

    def sends(self) -> bool:
        return not self._inert and super().sends()

    # ------------------------------------------------------------------ client

    def measured_records(self, count: int) -> int:
        return min(count, self.options.samples)

    def finish(self, session: Session) -> Tensors:
        if not session.last_round or self._inert:
            return {}
        chosen = session.generator("gates").permutation(len(session.examples))[: self.options.samples]
        adapters = session.adapters
        with adapters.resting(), torch.no_grad(), adapters.gate_use(self._top) as used:
            for index in chosen:  # one by one: padding would count, too
                example = [session.examples[int(index)]]
                session.backbone.loss(example, session.backbone.vision_features(session.image_root, images_of(example)))
            return {name: (count / count.sum()).float().cpu().numpy() for name, count in used.items()}

    @property
    def _inert(self) -> bool:
        return bool(self.options.release == "inert")

    @property
    def _top(self) -> int:
        return min(self.options.top, self.options.experts)

    # ------------------------------------------------------------------ server

    def common(self, stage: int) -> str:
        return "0"

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        if self.needs_stats:
            count_once(state, pairs, stats)
        super().assign(state, pairs, stats, make)

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        if state.round < self.config.federation.rounds - 1 or self._inert:
            return {}
        return {name: (self.options.experts,) for name in state.subspaces["0"] if GATE in name}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        if any((share < 0).any() or abs(float(share.sum()) - 1) > 0.01 for share in extra.values()):
            return "shares of used experts that do not sum to one"
        return None

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        used = Mean()

        def watched() -> Iterable[Update]:
            for update in updates:
                if update.extra:
                    used.add(update.extra, update.examples)
                yield update

        super().aggregate(state, watched(), aggregator)
        if used.weight:
            state.memory["fresh"] = used.result()

    def end_stage(self, state: ServerState, stage: int) -> None:
        used = state.memory.pop("fresh", None)
        if used is None:
            return
        uses = state.memory.setdefault("uses", {})
        if uses:
            state.subspaces["0"] = self._merged(state, list(uses.values())[-1], used)
            state.optimizers.pop("subspace-0", None)  # momentum of the server was that of other numbers
        uses[str(stage)] = used
        state.memory["before"] = {n: t for n, t in state.subspaces["0"].items() if A in n or B in n}

    def _merged(self, state: ServerState, earlier: Tensors, now: Tensors) -> Tensors:
        """theta_t: the experts of every layer, merged with those of the stage before."""
        merged, before = dict(state.subspaces["0"]), state.memory["before"]
        for gate, used in now.items():
            keep = self._keep(earlier[gate], used)
            for factor in (A, B):
                name = gate.replace(GATE, factor)
                ranks = np.repeat(keep, merged[name].shape[0 if factor == A else 1] // len(keep))
                weights = ranks[:, None] if factor == A else ranks
                merged[name] = (weights * before[name] + (1 - weights) * merged[name]).astype(np.float32)
        return merged

    def _keep(self, earlier: np.ndarray, now: np.ndarray) -> np.ndarray:
        """lambda of each expert ``(E,)`` of one layer, from its shares in the stage before and in the new one."""
        old, new = (_leading(shares, self._top) for shares in (earlier, now))
        o = self.options
        return np.where(old, np.where(new, o.keep_both, o.keep_old), np.where(new, o.keep_new, o.keep_other))

    def held(self, shape: Shape, stages: int) -> Held:
        return Held(server={} if self._inert else {"experts of the stage before": subspace_bytes(self.config, shape)})

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        uses, sums = state.memory.get("uses", {}), state.memory.get("sums", {})
        stages = [stage for stage in uses if stage in sums]
        if not stages:
            return {}, {}
        gates = sorted(uses[stages[0]])
        shares = np.stack([np.stack([uses[stage][gate] for gate in gates]) for stage in stages])
        return {}, {"anchors": np.stack([sums[stage] for stage in stages]).astype(np.float32), "uses": shares}

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        _, known = questions.knowledge
        if "uses" not in known:
            return super().answer(questions, mix)
        nearest = cosine(questions.identity, known["anchors"]).argmax(axis=1)
        with questions.adapters.gated_by((1 - self.options.blend) * known["uses"][nearest]):
            return super().answer(questions, mix)


def _leading(shares: np.ndarray, count: int) -> np.ndarray:
    """Whether each expert is among the ``count`` with the largest shares; of equals the first."""
    chosen = np.zeros(len(shares), dtype=bool)
    chosen[np.argsort(-shares, kind="stable")[:count]] = True
    return chosen
