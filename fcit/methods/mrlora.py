"""MR-LoRA: a LoRA per stage, trained alone, and one more with which the model itself names the one that answers.

Paper: Zhao et al., "MLLM-CL: Continual Learning for Multimodal Large Language Models" (arXiv 2506.05453), as its
released code and the toolbox MCITlib v3 have it; its text was not read. ``router: tokens`` is after the report of RePRo
(arXiv 2606.20961) that prototypes on frozen features choose as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from fcit.config import RunConfig, Section
from fcit.data.collate import Encoded
from fcit.data.records import Record, Turn
from fcit.errors import ConfigError, DataError
from fcit.fedopt.cores import Cores
from fcit.io.trees import Tensors
from fcit.methods.base import (
    ExtraRounds,
    Factory,
    Method,
    Pair,
    QuestionBatch,
    ServerState,
    Session,
    Stats,
    one_subspace,
)
from fcit.methods.disco import argmax_mix
from fcit.methods.knowledge_cache import cosine, count_once
from fcit.methods.views import Held, subspace_bytes
from fcit.models.layout import A, B

if TYPE_CHECKING:
    from fcit.models.encoding import Encoder
    from fcit.models.shapes import Shape

#: The subspace of the router.
ROUTER = "router"
#: What the router reads before the list of experts and after the question; the wording is ours.
ROLE = "You do not answer the question below, you choose the expert who will. The experts:"
TASK = "Which expert answers this question best? Reply with the letter only."


class MRLoRA(Method):
    """Experts that never meet, and a router that reads the question.

    Expert of stage t, from the backbone:   y = W0 x + s B_t A_t x,   loss = CE
    Router R, over kept records of stages 1..t:   loss = CE(letter of i | role, list, question of stage i with images)
    Answer:   i = argmax over the letters of known stages of p_R(letter | role, list, question),   then expert i alone

    A client keeps ``records`` of every stage it trains in; they never leave it, and count as replay memory. After the
    rounds of a stage, from the second stage on, the router is trained anew on them, by as many extra rounds of
    federated averaging as ``router_rounds`` says, which are sampled, checked and counted as other rounds are. A client
    that was not there before keeps its records of the stage then. Letters and descriptions are the benchmark's
    ``labels``. A projector that is trained belongs to each expert, and to the router.

    One forward pass decides the letter: the most probable of those of known stages. With ``letters: any`` a question
    whose most probable token of all begins none of them is answered by the backbone alone, and counted (event
    ``scored``: ``unrouted``); the released code generates an answer and draws an expert if it is not a letter.
    A question that does not fit with the list into ``backbone.max_length`` is read by the router up to its half, its
    quarter and so on. A question that gets the wrong expert counts as any other; the public toolbox drops it from the
    denominator, which raises its figures.

    ``router: tokens`` trains no router and keeps no record: the expert is the one whose records' mean feature of text
    and image, a sum over clients as in HiDe, is most similar to the question's.
    """

    class Options(Section):
        """All but ``router`` belong to ``router: generate``."""

        router: Literal["generate", "tokens"] = Field(
            "generate", description="generate: a trained router names the expert; tokens: prototypes choose it"
        )
        records: int = Field(20, ge=1, description="records of a stage that a client keeps; the authors: 20 in all")
        router_rounds: int = Field(1, ge=1, description="extra rounds after a stage, in which the router is trained")
        router_epochs: int = Field(30, ge=1, description="local epochs in them; 30: MCITlib v3, 40: the authors")
        router_lr: float | None = Field(
            None, gt=0, description="learning rate in them; default: training.lr, as MCITlib v3; 5e-6: the authors"
        )
        start: Literal["backbone", "merge"] = Field(
            "backbone",
            description="what the router starts from; backbone: MCITlib v3, merge: the authors, who add up the experts",
        )
        coefficient: float = Field(0.2, gt=0, description="of each expert in that merge; 0.2: the authors")
        letters: Literal["legal", "any"] = Field(
            "legal", description="legal: the best letter of a known stage; any: none, if another token is better"
        )

        @model_validator(mode="after")
        def _of_a_router(self) -> Self:
            # A run's own file has every default in it.
            given = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
            if self.router == "tokens" and given[1:]:
                raise ValueError(f"router: 'tokens' trains none, and {', '.join(given[1:])} is about one; leave it out")
            if self.start == "backbone" and "coefficient" in given:
                raise ValueError("coefficient has no effect with start: 'backbone'; leave it out, or say start: merge")
            return self

    name = "mrlora"
    family = "routing"
    summary = "a LoRA per stage, trained alone; a router LoRA, or prototypes, choose the one that answers"
    mixes_ranks = True
    answers = f"Each question is answered by one subspace, which the model chooses in a first pass with `{ROUTER}`."
    group = "replay"
    remembers = True
    identity = "both"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.remembers = self.refactors = self.options.router == "generate"
        self.needs_stats = not self.remembers
        if self.needs_stats:
            self.group = ""
            self.answers = "Each question is answered by the subspace whose records its text and image resemble most."

    # ------------------------------------------------------------------ rounds

    def refuse(self, state: ServerState) -> None:
        if self.remembers and not all(letter for letter, _ in state.labels):
            raise ConfigError(
                f"method: 'mrlora' gives every stage a letter, and there are {len(state.labels)} stages for 26 letters;"
                " choose method.router: tokens"
            )

    def extra_rounds(self, stage: int) -> ExtraRounds | None:
        if not self.remembers or stage == 0:  # with one expert there is nothing to choose
            return None
        lr = self.config.training.lr if self.options.router_lr is None else self.options.router_lr
        settings = {"epochs": self.options.router_epochs, "lr": lr}
        return ExtraRounds(self.options.router_rounds, settings, self.options.records * (stage + 1))

    def common(self, stage: int) -> str | None:
        return None if self.remembers else str(stage)

    # ------------------------------------------------------------------ client

    def select(self, session: Session) -> Sequence[Any]:
        if not self.remembers:
            return session.examples
        kept = session.memory.setdefault("kept", {})
        if str(session.stage) not in kept:
            order = session.generator("router").permutation(len(session.records))
            chosen = [session.records[int(place)].first() for place in order[: self.options.records]]
            kept[str(session.stage)] = [[record.turns[0].question, list(record.images)] for record in chosen]
        if self.extra(session.stage, session.round) is None:
            return session.examples
        experts, encoder = session.brief["experts"], session.backbone.encoder_below(session.image_root)
        return [
            _asked(encoder, experts, question, images, letter)
            for stage, letter, _ in experts
            for question, images in kept.get(stage, [])
        ]

    # ------------------------------------------------------------------ server

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        state.shared = {}
        name = self._trained(state)
        if name == ROUTER and state.memory.get("routed") != state.stage:
            state.memory["routed"] = state.stage
            state.subspaces.pop(ROUTER, None)  # and with it what belongs to numbers that are gone
            state.optimizers.pop(f"subspace-{ROUTER}", None)
            state.turns.pop(ROUTER, None)
            state.subspaces[ROUTER] = self._merged(state, {**make(f"{ROUTER}-{state.stage}"), **make.projector})
        elif name not in state.subspaces:
            state.subspaces[name] = {**make(name), **make.projector}
        state.assigned.update(dict.fromkeys(pairs, name))
        if self.needs_stats:
            count_once(state, pairs, stats)

    def _trained(self, state: ServerState) -> str:
        """The subspace of the round at hand."""
        return str(state.stage) if self.extra(state.stage, state.round) is None else ROUTER

    def settled(self, state: ServerState, pair: Pair) -> bool:
        return state.assigned.get(pair) == self._trained(state)

    def _merged(self, state: ServerState, router: Tensors) -> Tensors:
        """The router's first tensors: fresh ones, or c sum_i B_i A_i of the experts at the adapter's rank."""
        if self.options.start == "backbone":
            return router
        for name in [name for name in router if A in name]:
            cores = Cores([(tensors[name.replace(A, B)], tensors[name]) for tensors in state.subspaces.values()])
            merged = self.options.coefficient * torch.stack(cores.products).sum(0)
            router[name], router[name.replace(A, B)], _ = cores.factored(merged, router[name])
        return router

    def _experts(self, state: ServerState) -> list[list[str]]:
        """Subspace, letter and description of the experts there are, by letter."""
        names = [name for name in state.subspaces if name != ROUTER]
        return sorted(([name, *state.labels[int(name)]] for name in names), key=lambda expert: expert[1])

    def brief(self, state: ServerState) -> dict[str, Any]:
        return {} if self.extra(state.stage, state.round) is None else {"experts": self._experts(state)}

    def held(self, shape: Shape, stages: int) -> Held:
        """The router, and projectors of experts that ``adapter.projector: shared`` does not count."""
        projectors = 4.0 * stages * (shape.projector if self.config.adapter.projector == "shared" else 0)
        if not self.remembers:
            return Held(device={"projectors": projectors}, server={"projectors": projectors})
        router = {"router": subspace_bytes(self.config, shape, "shared", "per_subspace"), "projectors": projectors}
        text = 4.0 * self.options.records * stages * self.config.backbone.max_length  # characters of a token
        return Held(device=router, client={"kept records": text}, server=router)

    # ------------------------------------------------------------------ inference

    def knowledge(self, state: ServerState) -> tuple[dict[str, Any], Tensors]:
        if self.remembers:
            return {"names": list(state.subspaces), "experts": self._experts(state)}, {}
        sums = state.memory.get("sums", {})
        known = [name for name in state.subspaces if name in sums]
        prototypes = {"prototypes": np.stack([sums[name] for name in known]).astype(np.float32)} if known else {}
        return {"names": known}, prototypes

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """Weight one for the expert; none where the router chooses, see :meth:`choose`."""
        values, tensors = knowledge
        mix = np.zeros((len(features), len(names)), dtype=np.float32)
        if not self.remembers and values["names"]:
            places = [names.index(name) for name in values["names"]]
            mix[:, places] = argmax_mix(cosine(features, tensors["prototypes"]))
        elif self.remembers and ROUTER not in names:
            mix[:, -1] = 1.0  # the only expert
        return mix

    def choose(self, questions: QuestionBatch, mix: np.ndarray) -> np.ndarray:
        values, _ = questions.knowledge
        if not self.remembers or ROUTER not in values["names"]:
            return mix
        experts, places = values["experts"], {name: place for place, name in enumerate(values["names"])}
        router, chosen = np.zeros_like(mix), np.zeros_like(mix)
        router[:, places[ROUTER]] = 1.0
        with torch.no_grad(), questions.adapters.mixed(router):
            scores, legal = _letters(questions, experts)
        best = [places[experts[number][0]] for number in scores.argmax(1).tolist()]
        chosen[np.arange(len(chosen)), best] = 1.0
        return chosen if self.options.letters == "legal" else chosen * legal[:, None].numpy()

    def active(self, state: ServerState) -> int:
        """An expert, and the router before it."""
        return one_subspace(state) * (2 if ROUTER in state.subspaces else 1)


def _asked(
    encoder: Encoder, experts: Sequence[Sequence[str]], question: str, images: Sequence[str], letter: str
) -> Encoded:
    """The router's record for a question: its prompt, and the letter as its answer.

    Args:
        encoder: of records whose images lie where these do: prompts of some models depend on their sizes.
    """
    listed = "\n".join(f"{other}: {description}" for _, other, description in experts)
    while True:
        text = f"{ROLE}\n{listed}\nQuestion: {question}\n{TASK}"
        try:
            return encoder.encode(Record(tuple(images), (Turn(text, letter, len(images)),)))
        except DataError:
            if not question:
                raise
            question = question[: len(question) // 2]


def _letters(questions: QuestionBatch, experts: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loaded router makes of a batch.

    One forward pass, and one more for letters of several tokens (a rare tokenizer's) by what precedes the last.

    Returns:
        The log probability of each expert's letter ``(N, E)``, and whether the most probable first token of all begins
        one of these letters ``(N,)``.
    """
    letters = [letter for _, letter, _ in experts]
    encoder = questions.backbone.encoder_below(questions.image_root)
    spelled = [_asked(encoder, experts, "", (), letter).targets[:-1] for letter in letters]
    scores = torch.zeros(len(questions.records), len(experts))
    legal = torch.zeros(len(scores), dtype=torch.bool)
    for begin in dict.fromkeys(tokens[:-1] for tokens in spelled):
        alike = [number for number, tokens in enumerate(spelled) if tokens[:-1] == begin]
        asked = [
            _asked(encoder, experts, record.instruction, record.images, letters[alike[0]])
            for record in questions.records
        ]
        logits, _ = questions.backbone.answer_logits(asked, questions.features)
        likely = logits.view(len(asked), -1, logits.shape[-1]).log_softmax(-1).cpu()
        for number in alike:
            scores[:, number] = sum(likely[:, place, token] for place, token in enumerate(spelled[number]))
        legal = torch.isin(likely[:, 0].argmax(1), torch.tensor([tokens[0] for tokens in spelled]))
    return scores, legal
