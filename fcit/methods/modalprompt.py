"""ModalPrompt: one soft prompt per stage, trained towards its records' features and chosen by them.

Paper: Zeng et al., "ModalPrompt: Towards Efficient Multimodal Continual Instruction Tuning with Dual-Modality Guided
Prompt" (EMNLP 2025, arXiv 2410.05849), as public toolboxes have it; its text was not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from fcit.config import Section
from fcit.io.trees import Tensors, arrays
from fcit.methods.base import INVARIANTS, Pair, QuestionBatch, ServerState, Session
from fcit.methods.knowledge_cache import cosine
from fcit.methods.per_stage import PerStage
from fcit.methods.views import Held
from fcit.models.layout import MAP, PROMPTS, Layout

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class ModalPrompt(PerStage):
    """Frozen language model; each stage has a prompt P_t of ``length`` tokens and a small network M_t beside it.

    c_t = mean over the tokens of M_t(P_t),   M_t: linear, SiLU, linear, into the space of the features
    loss = CE + pull * 2 (1 - mean over the batch of cos(f, c_t))

    f joins the unit features of a record's text and image. A question gets the ``choose`` prompts with the largest
    cos(f, c_i) after its first token, the best one last; in training that is P_t, behind the best of earlier stages.
    After a stage M_t is dropped: the prompt and c_t are all that is needed. Clients get them once, if ``choose`` is
    more than 1; else they train the stage's own prompt alone.

    The paper compares c_t with image and text apart, one cosine each, and halves their sum for the choice. Here f joins
    both, and its cosine weighs them by the lengths of the two parts of c_t. Prompts begin with embeddings of the same
    random words in every stage. Toolboxes train the prompt for ten epochs (``training.epochs``), and M_t is much larger
    than P_t while it travels: two matrices as wide as the model.
    """

    class Options(Section):
        """``choose`` is the number of prompts a question gets."""

        length: int = Field(10, ge=1, description="tokens of a prompt; 10 or 20: MCITlib, 96: the Prism toolbox")
        choose: int = Field(1, ge=1, le=3, description="prompts of a question; the released code takes 1 to 3")
        pull: float = Field(1.0, ge=0, description="weight of both cosines; 1: the released code")

    name = "modalprompt"
    family = "prompts"
    summary = "a soft prompt per stage, chosen by text and image; no LoRA"
    answers = "Each question is answered with the prompts whose prototypes its text and image resemble most."
    whole_rank = "it trains prompts, which have no rank"
    needs_identity = True
    identity = "both"
    factors = frozenset({"separate"})
    invariants = INVARIANTS - {"starts-at-base"}

    @property
    def layout(self) -> Layout:
        return Layout(pool=1, length=self.options.length, identity=self.identity, mapped=True)

    # ------------------------------------------------------------------ client

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        if self.options.choose == 1:  # in training that is the stage's own
            return {}
        known = state.memory.get("prototypes", {})
        return {
            f"prompt-{name}": {PROMPTS: state.subspaces[name][PROMPTS], "prototype": prototype}
            for name, prototype in known.items()
            if int(name) < state.stage
        }

    def prepare(self, session: Session) -> None:
        trained = session.adapters.trainable[PROMPTS]
        queries = session.identity if session.identity is not None else np.zeros((0, 0), np.float32)
        session.notes["queries"] = torch.from_numpy(queries).to(trained.device)
        earlier = [session.constants[n] for n in sorted(session.constants, key=lambda n: int(n.rpartition("-")[2]))]
        count = min(self.options.choose - 1, len(earlier))
        if count:
            guide = cosine(queries, np.stack([group["prototype"] for group in earlier]))
            prompts = np.stack([group[PROMPTS][0] for group in earlier])
            session.notes["earlier"] = torch.from_numpy(prompts).to(trained.device)
            session.notes["chosen"] = best_last(guide, count)

    def loss(self, session, examples, features):
        trained = session.adapters.trainable
        prefix = trained[PROMPTS].expand(len(examples), -1, -1)
        if "earlier" in session.notes:
            older = session.notes["earlier"][session.notes["chosen"][session.batch]].flatten(1, 2)
            prefix = torch.cat([older, prefix], dim=1)
        near = functional.cosine_similarity(session.notes["queries"][session.batch], _prototype(trained)[None]).mean()
        return session.backbone.loss(examples, features, prefix) + self.options.pull * 2 * (1 - near)

    def held(self, shape: Shape, stages: int) -> Held:
        """A prototype is narrower than a token."""
        server = {"prototypes": 4.0 * stages * shape.width}
        if self.options.choose == 1:
            return Held(server=server)
        earlier = 4.0 * (stages - 1) * (self.options.length + 1) * shape.width
        return Held(client={"earlier prompts": earlier}, server=server)

    # ------------------------------------------------------------------ server

    def end_stage(self, state: ServerState, stage: int) -> None:
        trained = state.subspaces.get(str(stage))
        if trained is None:
            return
        prototype = _prototype({name: torch.from_numpy(tensor) for name, tensor in trained.items()})
        state.memory.setdefault("prototypes", {})[str(stage)] = prototype.numpy()
        state.subspaces[str(stage)] = {n: t for n, t in trained.items() if not n.startswith(MAP)}

    def tunable(self, state: ServerState, pair: Pair, stage: int) -> bool:
        """Never: the network that prompts are pulled through goes with its stage."""
        return False

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        known = state.memory.get("prototypes", {})
        names = [name for name in state.subspaces if name in known]
        return {"names": names}, {"prototypes": np.stack([known[name] for name in names])} if names else {}

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """Equal weights for the prompts that a question gets."""
        chosen = best_last(_guide(names, knowledge, features), min(self.options.choose, len(names)))
        mix = np.zeros((len(features), len(names)), dtype=np.float32)
        np.put_along_axis(mix, chosen, 1 / chosen.shape[1], axis=1)
        return mix

    def answer(self, questions: QuestionBatch, mix: np.ndarray | None) -> list[str]:
        if mix is None:
            return super().answer(questions, mix)
        guide = _guide(questions.knowledge[0]["names"], questions.knowledge, questions.identity)
        prompts = torch.from_numpy(np.stack([tensors[PROMPTS][0] for tensors in questions.subspaces]))
        prompts = prompts.to(questions.features.device)
        # Each by itself: a question that names its subspace has one prompt, and those beside it have theirs.
        counts, guide = (mix > 0).sum(axis=1), np.where(mix > 0, guide, -np.inf)
        chosen = [best_last(row[None], int(count))[0] for row, count in zip(guide, counts, strict=True)]
        prefix = [prompts[places].flatten(0, 1) for places in chosen]
        with questions.adapters.mixed(mix):
            return questions.backbone.generate(questions.examples, questions.features, questions.limit, prefix)

    def active(self, state: ServerState) -> int:
        prompts = [tensors[PROMPTS].size for tensors in state.subspaces.values()]
        return self.options.choose * max(prompts, default=0) + sum(t.size for t in arrays(state.shared))


def _prototype(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """c ``(d,)`` of a prompt and its network."""
    hidden = functional.silu(functional.linear(tensors[PROMPTS][0], tensors[f"{MAP}0.weight"], tensors[f"{MAP}0.bias"]))
    return functional.linear(hidden, tensors[f"{MAP}2.weight"], tensors[f"{MAP}2.bias"]).mean(dim=0)


def _guide(names: list[str], knowledge: tuple[dict[str, Any], Tensors], features: np.ndarray) -> np.ndarray:
    """cos(f, c_i) ``(N, E)``; below all for a prompt without prototype, whose stage has not ended."""
    values, tensors = knowledge
    guide = np.full((len(features), len(names)), -2.0)
    known = [number for number, name in enumerate(names) if name in values["names"]]
    if known:
        rows = [values["names"].index(names[number]) for number in known]
        guide[:, known] = cosine(features, tensors["prototypes"][rows])
    return guide


def best_last(guide: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` columns with the largest values in each row ``(N, count)``, the largest last; ties: the first."""
    chosen = np.argsort(-guide, axis=1, kind="stable")[:, :count]
    return chosen[:, ::-1].copy()  # torch takes no negative strides, and ascontiguousarray leaves those of one column
