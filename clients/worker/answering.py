"""Test questions of one run, answered with broadcast subspaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clients.worker import micro_batches
from clients.worker.shards import Questions
from fcit.config import RunConfig
from fcit.data.collate import images_of
from fcit.errors import FCITError
from fcit.federation.messages import EvaluateOrder, ScoreOrder
from fcit.io.cache import Bounded
from fcit.io.trees import Tensors, under
from fcit.methods.base import Method, QuestionBatch
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.decoding.batches import Batches
from fcit.models.estimate import workers_per_gpu
from fcit.models.judging import TokenJudge
from fcit.models.tokens import Tokenised

_LOCATED = 100_000  # questions whose tokens are kept located


class Answering:
    """Answers greedily in batches, every question routed by the method.

    Args:
        judge: has checked the questions and has their tokens.
        identities: keeps the questions' identity features, as those of shards.
    """

    def __init__(
        self,
        config: RunConfig,
        model: tuple[Backbone, Adapters],
        method: Method,
        data: Questions,
        judge: TokenJudge,
        identities: Bounded,
    ) -> None:
        self.config, self.method, self.data = config, method, data
        self.backbone, self.adapters = model
        self.batches = Batches(config.evaluation, self.backbone.answering, workers_per_gpu(config))
        self._judge, self._identities = judge, identities
        self._encodings = Bounded(_LOCATED, len)

    def answers(
        self,
        order: EvaluateOrder | ScoreOrder,
        knowledge: dict[str, Any],
        dataset: str,
        stretch: slice,
        own: Callable[[list[Tensors]], list[Tensors]],
    ) -> tuple[list[str], np.ndarray | None]:
        """Answers to a stretch of a data set, and the mix of every question.

        Args:
            knowledge: the JSON values of what inference needs; its tensors are the order's.
            own: from the order's subspaces to those that answer here.

        Raises:
            FCITError: the method returned no mix, or memory does not suffice for one question.
        """
        features = self._identity(dataset)
        first, last, _ = stretch.indices(len(features))
        features = features[first:last]
        subspaces = own([under(order.tensors, f"subspace-{i}/") for i in range(len(order.names))])
        projector = {**self.adapters.base_projector(), **under(order.tensors, "shared/")}
        self.adapters.load_mixture(subspaces, projector, self.config.evaluation.mixture == "backbone")
        known = under(order.tensors, "knowledge/")
        weights, texts = None, list[str]()
        if order.names:
            routed = self.method.route(order.names, (knowledge, known), features)
            weights = self._mix(routed, (len(features), len(order.names)), "route")
        records = self.data.test(dataset)
        limit = self.config.evaluation.longest(self.data.max_new_tokens(dataset))
        stride, images = self.config.evaluation.stretch, self.data.question_images(dataset)
        for begin in range(first, last, stride):
            encoded = self._questions(dataset, begin, min(begin + stride, last))

            def answer(places: list[int], encoded: Tokenised = encoded, begin: int = begin) -> list[str]:
                batch, rows = [encoded[place] for place in places], [begin - first + place for place in places]
                where = f"in answering {len(batch)} questions at a time"
                auto = self.config.evaluation.batch_size == "auto"
                lower = "backbone.max_length" if auto else "evaluation.batch_size (or say auto)"
                with self.backbone.answering.by(self.method.answers_by), micro_batches.explained(where, lower):
                    vision = self.backbone.vision_features(images, images_of(batch))
                    model, knows = (self.backbone, self.adapters, subspaces), (knowledge, known)
                    asked = [records[begin + place] for place in places]
                    questions = QuestionBatch(*model, batch, vision, features[rows], limit, knows, asked, images)
                    if weights is None:
                        return self.method.answer(questions, None)
                    chosen = self.method.choose(questions, weights[rows])
                    weights[rows] = self._mix(chosen, (len(rows), len(order.names)), "choose")
                    return self.method.answer(questions, weights[rows])

            texts += self.batches.answered(encoded, limit, answer, len(records))
        return texts, weights

    def _questions(self, dataset: str, first: int, last: int) -> Tokenised:
        """A stretch of a data set's questions, tokenised."""
        judge = self._judge.below(self.data.question_images(dataset))
        questions = self.data.test(dataset)[first:last]
        key = (dataset, first, last, judge.stamp(questions))
        tokenised: Tokenised = self._encodings.get(key, lambda: judge.examples(questions))
        return tokenised

    def _identity(self, dataset: str) -> np.ndarray:
        """Identity features of all questions of a data set, encoded together: the same batches at every client."""
        encoder, images = self.backbone.identity, self.data.question_images(dataset)
        questions, kind = self.data.test(dataset), self.method.identity
        key = (dataset, encoder.stamp(kind, questions, images))
        kept: np.ndarray = self._identities.get(key, lambda: encoder.features(kind, questions, images))
        return kept

    def _mix(self, weights: Any, wanted: tuple[int, int], hook: str) -> np.ndarray:
        """The method's mix, checked: a method of the user's own may return anything."""
        if not isinstance(weights, np.ndarray) or weights.shape != wanted or not np.isfinite(weights).all():
            got = getattr(weights, "shape", type(weights).__name__)
            raise FCITError(f"method {self.method.name}: {hook} must return finite weights {wanted}, got {got}")
        return weights.astype(np.float32)
