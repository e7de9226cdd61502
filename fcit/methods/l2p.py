"""L2P: a pool of soft prompts with keys; each input selects the prompts with the nearest keys.

Paper: Wang et al., "Learning to Prompt for Continual Learning" (CVPR 2022, arXiv 2112.08654), carried
over to a language model (our adaptation: the query is the instruction's text feature).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from fcit.config import Section
from fcit.fedopt.aggregator import Aggregator
from fcit.io.trees import Tensors, arrays
from fcit.methods.base import INVARIANTS, Method, QuestionBatch, ServerState, Session, Update
from fcit.models.layout import KEYS, PROMPTS, Layout

#: By how much a sum of counts grows at most, relatively, if these travel as bfloat16 with its eight significant bits.
ROUNDING = 2.0**-8


class L2P(Method):
    """Frozen language model, trained prompts.

    Pool {(k_m, P_m)}, m = 1..M. The N prompts with the largest cos(q, k_m), nearest first, are inserted after the
    first token of an input with query q. loss = CE - pull * mean over the chosen of cos(q, k_m).

    With ``penalty``, training ranks prompts by (1 - cos(q, k_m)) * (past use of m) instead, as the paper's option.

    Clients' prompts and keys are averaged slot by slot, weighted by how often a client chose the slot:
    slots that no client chose are unchanged (our choice; weights by records would dilute the others). Prompts are
    initialised with embeddings of random words, the same for all clients.
    """

    class Options(Section):
        """``pool``, ``length`` and ``choose`` are the paper's M, L and N, ``pull`` its lambda."""

        pool: int = Field(20, ge=1)
        length: int = Field(10, ge=1)
        choose: int = Field(2, ge=1)
        pull: float = Field(0.5, ge=0)
        penalty: bool = False

    name = "l2p"
    family = "prompts"
    summary = "a pool of soft prompts, the nearest chosen per question; no LoRA"
    whole_rank = "it trains prompts, which have no rank"
    needs_identity = True
    factors = frozenset({"separate"})
    robust = False  # prompts are averaged by how often clients chose them
    invariants = INVARIANTS - {"weighted-mean", "starts-at-base"}

    @property
    def layout(self) -> Layout:
        return Layout(pool=self.options.pool, length=self.options.length, identity=self.identity)

    # ------------------------------------------------------------------ choice

    def _choose(self, keys: torch.Tensor, queries: torch.Tensor, used: torch.Tensor | None = None) -> torch.Tensor:
        """Slots ``(B, N)`` for queries ``(B, d)``, nearest first; ties go to the lower slot."""
        distance = 1 - functional.normalize(queries, dim=-1) @ functional.normalize(keys, dim=-1).T
        if used is not None and used.sum() > 0:
            distance = distance * used / used.sum()
        return torch.sort(distance, dim=-1, stable=True).indices[:, : self._count]

    @property
    def _count(self) -> int:
        return min(self.options.choose, self.options.pool)

    # ------------------------------------------------------------------ client

    def prepare(self, session: Session) -> None:
        device = session.adapters.trainable[KEYS].device
        session.notes["queries"] = torch.from_numpy(session.identity).to(device)
        session.notes["count"] = torch.zeros(len(session.adapters.trainable[KEYS]), device=device)
        used = session.received.get("used")
        session.notes["used"] = None if used is None else torch.from_numpy(used).to(device)

    def loss(self, session, examples, features):
        keys, prompts = session.adapters.trainable[KEYS], session.adapters.trainable[PROMPTS]
        queries = session.notes["queries"][session.batch]
        chosen = self._choose(keys.detach(), queries, session.notes["used"])
        session.notes["count"] += torch.bincount(chosen.flatten(), minlength=len(keys))
        pulled = functional.cosine_similarity(queries[:, None], keys[chosen], dim=-1).mean()
        prefix = prompts[chosen].flatten(1, 2)
        return session.backbone.loss(examples, features, prefix) - self.options.pull * pulled

    def finish(self, session: Session) -> Tensors:
        return {"used": session.notes["count"].cpu().numpy().astype(np.float32)}

    # ------------------------------------------------------------------ server

    def broadcast(self, state: ServerState, pair) -> Tensors:
        return {"used": state.memory["used"]} if self.options.penalty and "used" in state.memory else {}

    def extra_shapes(self, state: ServerState) -> dict[str, tuple[int, ...]]:
        return {"used": (self.options.pool,)}

    def reject_reason(self, extra: Tensors, examples: int) -> str | None:
        epochs = self.config.training.epochs
        used, most = extra["used"], examples * max([epochs] if isinstance(epochs, int) else epochs) * self._count
        rounding = 0.0 if self.config.federation.wire == "float32" else ROUNDING
        if (used < 0).any() or used.sum() > most * (1 + rounding):
            return f"prompts chosen {used.sum():.0f} times, at most {most} for {examples} records"
        return None

    def aggregate(self, state: ServerState, updates: Iterable[Update], aggregator: Aggregator) -> None:
        """P_m <- sum_k u_km P_km / sum_k u_km, u_km: how often client k chose slot m; keys alike.

        A projector goes by records, whether it is shared or the subspace's.
        """
        old, memory = state.subspaces["0"], state.optimizers.setdefault("subspace-0", {})
        # Both by the same memory, which is kept by tensor.
        pool, rest = (aggregator.group("0", old, memory) for _ in range(2))
        shared = aggregator.group("shared", state.shared, state.optimizers.setdefault("shared", {}))
        total = np.zeros(self.options.pool)
        sums = {name: np.zeros(old[name].shape) for name in (KEYS, PROMPTS)}
        extra: Tensors = {}
        for update in updates:
            used = update.extra["used"].astype(np.float64)
            total += used
            for name in sums:
                sums[name] += update.tensors[name] * _like(used, old[name])
                extra |= {n: extra.get(n, 0) + t for n, t in update.fedopt.items() if n == name}
            common = {k: v for k, v in update.tensors.items() if k in state.shared}
            if common:
                shared.add(common, update.examples, update.fedopt)
            own = {k: v for k, v in update.tensors.items() if k not in common and k not in sums}
            if own:
                rest.add(own, update.examples, update.fedopt)
        state.shared = shared.result()
        state.subspaces["0"] = rest.result()
        if total.any():
            pool.add({name: _slotwise(summed, total, old[name]) for name, summed in sums.items()}, 1, extra)
            new = pool.result()
            # A server optimiser with momentum would also move slots that no client chose.
            still = {name: np.where(_like(total > 0, old[name]), new[name], old[name]) for name in sums}
            state.subspaces["0"] = {**state.subspaces["0"], **still}
            state.memory["used"] = (state.memory.get("used", 0.0) + total).astype(np.float32)

    # ------------------------------------------------------------------ inference

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        if not questions.subspaces:
            return super().answer(questions, mix)
        prompts, keys = (torch.from_numpy(questions.subspaces[0][name]) for name in (PROMPTS, KEYS))
        chosen = self._choose(keys, torch.from_numpy(questions.identity))
        prefix = prompts[chosen].flatten(1, 2).to(questions.features.device)
        with questions.adapters.mixed(mix):
            return questions.backbone.generate(questions.examples, questions.features, questions.limit, prefix)

    def active(self, state: ServerState) -> int:
        pool: Any = state.subspaces.get("0", {}).get(PROMPTS)
        chosen = 0 if pool is None else self._count * pool[0].size
        return chosen + sum(t.size for t in arrays(state.shared))


def _like(slots: np.ndarray, tensor: np.ndarray) -> np.ndarray:
    """Values per slot ``(M,)``, reshaped to multiply ``(M, ...)``."""
    return slots.reshape(-1, *[1] * (tensor.ndim - 1))


def _slotwise(summed: np.ndarray, total: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The weighted mean of each slot; the old value of slots that no client chose."""
    chosen = _like(total > 0, old)
    return np.where(chosen, summed / np.where(chosen, _like(total, old), 1.0), old).astype(np.float32)
