"""SMoLoRA: two mixtures of LoRA experts in every layer, one for what is seen and one for how to answer.

Paper: Wang et al., "SMoLoRA: Exploring and Defying Dual Catastrophic Forgetting in Continual Visual Instruction Tuning"
(arXiv 2411.13949), in its released code; its text was not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from fcit.config import Section
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Method, Pair, QuestionBatch, ServerState, Stats
from fcit.methods.knowledge_cache import KnowledgeCache, cosine
from fcit.methods.views import Held
from fcit.models.layout import Layout, is_factor

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class SMoLoRA(Method):
    """One adapter of rank r in E experts, half of visual understanding (v) and half of instruction following (i).

    g_v = one(softmax(R_v xbar)),   g_i = one(softmax(R_i f))
    o_v = s sum_j g_vj B_j A_j x,   o_i = s sum_j g_ij B_j A_j x,   s = alpha / r
    (p, q) = softmax(l_v o_v, l_i o_i) for every token,   y = W0 x + p o_v + q o_i

    one(.) is 1 for the largest and 0 for the others, xbar the mean of the layer's input over the question's tokens,
    images among them, and f the feature of the line that ends the question and demands a form of answer. Every layer
    has its own routers R and fusion l. All of it is trained on all stages in turn and averaged by records; the mean of
    routers is meaningful because all clients start from the same ones.

    Where the released code differs, and why this does not follow it:

    - Its one(.) is a constant: both routers stay as they were drawn (after the first task they are frozen, too). Here
      the gradient of the chosen probability goes through (straight-through, Bengio et al., 2013, arXiv 1308.3432): the
      forward pass is that of the released code, to the bit, and what differs is what routers learn. Multiplying by the
      probability would have the same gradient where it is 1 and shrink the output of an undecided router elsewhere.
      ``router: released`` keeps the constant.
    - In generation it takes xbar from the newest token, so that the visual expert changes within an answer. Here it is
      chosen once, from the question; ``released`` chooses at every token. (In training its mean is over the answer and
      padding, too, which ``released`` here leaves out.)
    - It is given the task of a question, and f is a row of a table. Here it is not: clients describe their shards by
      the mean feature of their records' last lines, the server keeps those that differ (cosine below ``same``), and f
      is the one that a question's own last line is most similar to, in training and at inference.
    - f comes from the run's identity encoder, there from a sentence encoder; the projector has no adapters here.
    """

    class Options(Section):
        """``experts`` must divide ``adapter.rank``."""

        experts: int = Field(8, ge=4, multiple_of=2, description="of both mixtures together; 8: the released code")
        router: Literal["straight", "released"] = Field(
            "straight", description="straight: routers learn; released: they do not, and choose anew at every token"
        )
        same: float = Field(
            0.99, gt=-1, le=1, description="cosine at which the last lines of two shards count as one (ours)"
        )

    name = "smolora"
    family = "routing"
    summary = "two mixtures in every layer, chosen by what is seen and by the form of answer that is demanded"
    by_record = True
    whole_rank = "its experts share out the rank, and the leading ranks are the first experts"
    needs_stats = True
    needs_identity = True
    identity = "suffix"
    #: An SVD of the summed product would mix the experts that the routers distinguish.
    factors = frozenset({"separate", "alternate", "frozen_a"})

    @property
    def layout(self) -> Layout:
        gate: Literal["halves", "dead-halves"] = "dead-halves" if self.options.router == "released" else "halves"
        return Layout(experts=self.options.experts, gate=gate, identity=self.identity)

    def held(self, shape: Shape, stages: int) -> Held:
        """Clients keep nothing. The demands of form, sums in float64, if every task has one of its own."""
        demands = {"demanded forms of answers": 8.0 * stages * shape.identity_width}
        return Held(device=demands, server=demands)

    # ------------------------------------------------------------------ client

    def loss(self, session, examples, features):
        demanded = _nearest(session.identity[session.batch], session.received["suffixes"])
        with session.adapters.instructed(demanded):
            return super().loss(session, examples, features)

    # ------------------------------------------------------------------ server

    def common(self, stage: int) -> str:
        return "0"

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        known = _known(state)
        for pair in sorted(pair for pair in set(pairs) & set(stats) if pair not in state.assigned):
            total, count = stats[pair].total, stats[pair].count
            alike = known.match(total / count, self.options.same)
            known.add(str(len(known.names)) if alike is None else alike, total, count)
        super().assign(state, pairs, stats, make)

    def broadcast(self, state: ServerState, pair: Pair) -> Tensors:
        return {"suffixes": _known(state).tokens}

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        known = _known(state)
        return {}, {"suffixes": known.tokens} if known.names else {}

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        known = questions.knowledge[1].get("suffixes", questions.identity)  # before anything is trained: its own
        with questions.adapters.instructed(_nearest(questions.identity, known)):
            return super().answer(questions, mix)

    def active(self, state: ServerState) -> int:
        """One expert of either mixture, routers and fusion, and the shared tensors."""
        tensors = state.subspaces.get("0", {})
        factors = sum(t.size for n, t in tensors.items() if is_factor(n))
        return super().active(state) - factors + 2 * factors // self.options.experts


def _known(state: ServerState) -> KnowledgeCache:
    """The last lines that differ, in the server's state: additions are kept there."""
    return KnowledgeCache(**state.memory.setdefault("suffixes", {"names": [], "sums": [], "counts": []}))


def _nearest(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each feature ``(N, d)`` the most similar of those known ``(M, d)``."""
    return known[cosine(features, known).argmax(axis=1)]
