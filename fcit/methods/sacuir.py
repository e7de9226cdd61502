"""SAC and UIR in a definition of our own: spectral consolidation of a stage's update, and unlabelled inquiries.

The abstract of LLaVA-c (arXiv 2506.08666) names spectral-aware consolidation and unsupervised inquiry regularisation;
its equations were not available. This is **our definition** of the two ideas; results are marked with a dagger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from fcit.fedopt.products import one_thread
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Pair, ServerState, Session, Stats
from fcit.methods.merging import Merge, Merging
from fcit.methods.views import Held, subspace_bytes

if TYPE_CHECKING:
    from fcit.models.shapes import Shape

#: Inquiries without images and answers, ours.
INQUIRIES = (
    "Describe how to prepare for a long journey.",
    "Explain why the sky is blue.",
    "Give three reasons to learn another language.",
    "What are the main parts of a plant?",
    "Write a short greeting to a new colleague.",
    "How would you compare a train and a bicycle?",
    "Summarise the idea of supply and demand.",
    "Which questions should one ask before buying a house?",
)


class SACUIR(Merging):
    """One adapter, trained stage after stage; its answers to inquiries are held, and its update is consolidated.

    loss = CE + strength * mean over inquiries u of KL(p_0(. | u) || p_theta(. | u))
    M_t = M_{t-1} + weight U g(S) V^T,   Delta_t = U S V^T,   g keeps the leading singular values

    UIR: p is the distribution of the first token of an answer to a text without image, p_0 that of the model which the
    stage starts from, without dropout. That model is sent to a client once per stage, and its distributions are
    computed once per order. SAC, at the server: of the update Delta_t of a stage, the fewest directions that hold the
    share ``keep`` of its squares are kept, the others dropped.
    """

    class Options(Merging.Options):
        """All defaults are ours."""

        start: Literal["backbone", "merged"] = Field(
            "merged",
            description="what a stage starts from; backbone: updates are added that know nothing of each other",
        )
        keep: float = Field(0.9, ge=0, le=1, description="share of an update's squares that is merged")
        weight: float = Field(1.0, gt=0, description="of an update in the merge")
        strength: float = Field(1.0, ge=0, description="weight of the inquiries")

    name = "sacuir"
    family = "merging"
    summary = "updates consolidated by their main directions, answers to unlabelled texts held (our definition)"
    mixes_ranks = True
    dagger = True

    # ------------------------------------------------------------------ client

    def prepare(self, session: Session) -> None:
        inquiries = [session.backbone.encode(text, ".", None) for text in INQUIRIES] if self.options.strength else []
        if not inquiries:
            return
        (teacher,) = session.constants.values()
        session.notes["inquiries"] = inquiries
        session.notes["none"] = session.backbone.vision_features(session.image_root, [])
        session.adapters.load_teacher(teacher)
        with session.adapters.teacher():
            session.notes["held"] = self._first_words(session).log_softmax(-1)

    def loss(self, session, examples, features):
        loss = super().loss(session, examples, features)
        if "held" in session.notes:
            held, now = session.notes["held"], self._first_words(session).log_softmax(-1)
            loss = loss + self.options.strength * (held.exp() * (held - now)).sum(-1).mean()
        return loss

    @staticmethod
    def _first_words(session: Session) -> torch.Tensor:
        """Logits of the first token after each inquiry ``(inquiries, vocabulary)``."""
        inquiries = session.notes["inquiries"]
        logits, _ = session.backbone.answer_logits(inquiries, session.notes["none"])
        return logits[:: len(logits) // len(inquiries)]

    # ------------------------------------------------------------------ server

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        begins = state.memory.get("begun") != state.stage
        super().assign(state, pairs, stats, make)
        if begins and self.options.strength:
            state.memory["teacher"] = {**state.shared, **state.subspaces["0"]}

    def held(self, shape: Shape, stages: int) -> Held:
        held = super().held(shape, stages)
        if not self.options.strength:
            return held
        teacher = {"teacher": subspace_bytes(self.config, shape, "shared", "per_subspace")}
        words = {"words of the inquiries": 4.0 * len(INQUIRIES) * shape.vocabulary}
        return Held(training=words, client=teacher, server={**held.server, **teacher})

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        return {f"teacher-{state.memory['begun']}": state.memory["teacher"]} if "teacher" in state.memory else {}

    @one_thread()
    def _merge(self, state: ServerState, layers: dict[str, Merge]) -> dict[str, torch.Tensor]:
        return {
            name: layer.old + self.options.weight * leading(layer.increment, self.options.keep)
            for name, layer in layers.items()
        }


def leading(update: torch.Tensor, share: float) -> torch.Tensor:
    """An update ``(m, n)`` with the fewest singular values that hold a share of its squares."""
    u, s, vt = torch.linalg.svd(update, full_matrices=False)
    squares = s.square()
    kept = int((squares.cumsum(0) < share * squares.sum()).sum()) + 1 if share else 0
    return (u[:, :kept] * s[:kept]) @ vt[:kept]
