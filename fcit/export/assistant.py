"""Answering with the subspaces of a run, without benchmark, server and clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import torch

from fcit import registry
from fcit.config import RunConfig
from fcit.config.checks import contradictions
from fcit.data.collate import images_of
from fcit.data.records import TestRecord
from fcit.errors import ConfigError, DataError
from fcit.export import format
from fcit.export.format import Portable
from fcit.export.questions import Picture, Question, listed, one_root, record
from fcit.io.trees import Tensors
from fcit.methods.base import Method, QuestionBatch
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.decoding.batches import Batches
from fcit.models.decoding.watching import Watch
from fcit.models.layout import is_projector
from fcit.models.places import locate

#: Hashes that must be equal for equal answers.
_HASHES = ("backbone", "tokenizer", "processor", "identity")
#: Keys of a run's evaluation on which the last bits of its answers depend.
_ANSWERING = ("decoder", "batch_size", "by_length", "batches_per_order")


@dataclass(frozen=True)
class Answer:
    """An answer of the model.

    Attributes:
        text: stripped.
        mix: the weight of each subspace in it, by name.
        prompt_tokens: of the question, placeholders of images included.
        new_tokens: that the model made, an end token included.
        ended: whether it ended by itself, and not at the limit of its tokens.
    """

    text: str
    mix: dict[str, float]
    prompt_tokens: int = 0
    new_tokens: int = 0
    ended: bool = True


class Assistant:
    """A backbone with the subspaces of a run; questions are routed by the run's method.

    Args:
        folder: an export, or a run folder.
        backbone: folder or hub name of the frozen model, if it is not where the run found it.
        identity: the same for the CLIP that routes.
        device: ``cpu`` or ``cuda[:n]``; default: that of the run if available, else ``cpu``.
        other_weights: accept a backbone with other weights, tokenizer or image processor than the run's.

    Raises:
        ConfigError: no such folder, a backbone that cannot be loaded or differs, a method that answers with the
            user's code. DataError: damaged files.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backbone: str | None = None,
        identity: str | None = None,
        device: str | None = None,
        other_weights: bool = False,
    ) -> None:
        self.portable = Portable.open(Path(folder))
        self.routing = self.portable.routing
        if backbone is not None and identity is None and self.routing.backbone.identity is None:
            identity = locate(self.routing.backbone.model, None)[1]  # the built-in model brings its own
        changes = {"model": backbone, "identity": identity, "device": device or _device(self.routing.backbone.device)}
        settings = self.routing.backbone.model_dump() | {k: v for k, v in changes.items() if v is not None}
        # Single images are not worth caching; the thread count is a matter of this machine.
        settings |= {"feature_cache": "off", "threads": 0}
        self.method = _method(self.portable, settings)
        subspaces, shared = self.portable.split()
        self._known = self.portable.known()
        self._backbone = Backbone(self.method.config.backbone, self.routing.pictures)
        self._batches = Batches(self.method.config.evaluation, self._backbone.answering)
        if not other_weights:
            self._same_weights()
        self._adapters = Adapters(self._backbone, self.routing.adapter, self.method.layout)
        for name, tensors in zip(self.subspaces, subspaces, strict=True):
            self._fits(name, {**shared, **tensors})
        self._subspaces = subspaces
        self._encoding = Lock()
        projector = {**self._adapters.base_projector(), **shared}
        self._adapters.load_mixture(subspaces, projector, self.routing.mixture == "backbone")

    @property
    def subspaces(self) -> list[str]:
        """Names of the subspaces, in the order of every mix."""
        return self.routing.subspaces

    @property
    def trained_on(self) -> dict[str, dict[str, int]]:
        """For each subspace the data sets it was trained on and the number of records of each, as far as known."""
        return self.routing.trained_on

    def answer(
        self,
        images: Sequence[Picture | Sequence[Picture] | None],
        questions: Sequence[str],
        max_new_tokens: int | None = None,
        subspace: str | None = None,
    ) -> list[Answer]:
        """Greedy answers; the method of the run mixes the subspaces for each question.

        Args:
            images: for each question a file or an opened image, a list of these, or None for a question without.
            questions: worded as the run's instructions, format line included, because routing depends on the wording.
                Images are placed before the question, whatever the position of its image tags.
            max_new_tokens: default: the limit of the run.
            subspace: answer with this one alone, with weight one.

        Raises:
            ConfigError: no such subspace, or a method that cannot route without the true task. DataError: an image
                cannot be read, not every question has images or None, or a question has not as many image tags as
                images.
        """
        if len(images) != len(questions):
            raise DataError(
                f"{len(images)} images for {len(questions)} questions; give each question an image, a list of images "
                "or None"
            )
        with TemporaryDirectory(prefix="fcit-") as scratch:
            given = [listed(pictures) for pictures in images]
            flat = [picture for pictures in given for picture in pictures]
            root, names = one_root(flat, Path(scratch), self.routing.pictures)
            rest = iter(names)
            put = [
                self.question(record(number, tuple(islice(rest, len(pictures))), text), max_new_tokens, subspace, root)
                for number, (pictures, text) in enumerate(zip(given, questions, strict=True))
            ]
            return self.respond(root, put)

    def question(
        self,
        record: TestRecord,
        max_new_tokens: int | None = None,
        subspace: str | None = None,
        root: Path | None = None,
    ) -> Question:
        """A question for :meth:`respond`; several threads may call it, also while another one answers.

        Args:
            root: folder that the names of its images are relative to, where their sizes matter.

        Raises:
            ConfigError: no such subspace, or a limit below 1. DataError: it is longer than ``backbone.max_length``, an
                image cannot be read, or its text holds what stands for an image.
        """
        limit = self.routing.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise ConfigError(f"max_new_tokens: must be at least 1, got {limit}")
        self._check(subspace)
        with self._encoding:
            encoder = self._backbone.encoder_below(root)
            example = encoder.encode(record)
            wanted = sum(encoder.placeholders.count(image) for image in images_of([example]))
        if example.tokens.count(encoder.image_token) != wanted:
            raise DataError(f"question {record.instruction[:80]!r} contains the image tag as text; remove it")
        return Question(record, example, limit, subspace)

    def respond(
        self,
        root: Path,
        questions: Sequence[Question],
        watch: Watch | None = None,
        done: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """Answers in the stretches and batches of the run, on which the last bits depend.

        A mix that no question names becomes what the method makes of it with the model.

        Args:
            root: folder that the names of the images are relative to.
            watch: called with the place of a question and the tokens of its answer so far, after each of them; True
                ends the answer there.
            done: called with the place of a question and its answer as soon as its batch is answered.

        Raises:
            ConfigError: a method that cannot route without the true task. DataError: an image cannot be read.
        """
        if not questions:
            return []
        features = self._backbone.identity.features(self.method.identity, [q.record for q in questions], root)
        mix = self._mixes(features, questions)
        counts, ended = [0] * len(questions), [True] * len(questions)
        answers: dict[int, Answer] = {}

        def followed(rows: list[int], row: int, tokens: list[int]) -> bool:
            place = rows[row]
            counts[place] = len(tokens)
            ended[place] = tokens[-1] in self._backbone.answering.ends
            over = watch is not None and watch(place, tokens)
            return over or len(tokens) >= questions[place].limit

        def answer(begin: int, places: list[int]) -> list[str]:
            rows = [begin + place for place in places]
            batch = [questions[row].example for row in rows]
            vision = self._backbone.vision_features(root, images_of(batch))
            model, knows = (self._backbone, self._adapters, self._subspaces), (self.routing.knowledge, self._known)
            longest = max(questions[row].limit for row in rows)
            put, answering = [questions[row].record for row in rows], self._backbone.answering
            asked = QuestionBatch(*model, batch, vision, features[rows], longest, knows, put, root)
            routed = [place for place, row in enumerate(rows) if questions[row].subspace is None]
            with answering.by(self.method.answers_by):
                if self.subspaces and routed:
                    chosen = self.method.choose(asked, mix[rows])
                    mix[[rows[place] for place in routed]] = chosen[routed]
                with answering.watched(partial(followed, rows)):
                    texts = self.method.answer(asked, mix[rows] if self.subspaces else None)
            for row, text in zip(rows, texts, strict=True):
                weights = {name: round(float(w), 6) for name, w in zip(self.subspaces, mix[row], strict=True)}
                prompt = len(questions[row].example.tokens)
                answers[row] = Answer(text, weights, prompt, counts[row], ended[row])
                if done is not None:
                    done(row, answers[row])
            return texts

        stretch, examples = self.method.config.evaluation.stretch, [q.example for q in questions]
        for begin in range(0, len(examples), stretch):
            longest = max(q.limit for q in questions[begin : begin + stretch])
            self._batches.answered(examples[begin : begin + stretch], longest, partial(answer, begin))
        return [answers[place] for place in range(len(questions))]

    def text(self, tokens: list[int]) -> str:
        """The text of the first tokens of an answer, stripped."""
        return str(self._backbone.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    @property
    def grows(self) -> bool:
        """Whether what further tokens add to a text follows it; some tokenizers draw marks to the word before."""
        return not getattr(self._backbone.tokenizer, "clean_up_tokenization_spaces", False)

    @property
    def at_once(self) -> int:
        """Questions of a batch, as far as memory allows."""
        return self.method.config.evaluation.at_once

    def _mixes(self, features: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
        """Weights ``(N, E)``: routed, or of the one subspace that a question names."""
        chosen = [question.subspace for question in questions]
        if len(set(chosen)) == 1:
            return self._mix(features, chosen[0])
        mix = np.zeros((len(questions), len(self.subspaces)), dtype=np.float32)
        for name in set(chosen):
            rows = [row for row, subspace in enumerate(chosen) if subspace == name]
            mix[rows] = self._mix(features[rows], name)
        return mix

    def _check(self, subspace: str | None) -> None:
        if subspace is None:
            if self.method.needs_task_at_inference:
                raise ConfigError(
                    f"method {self.method.name} is a reference that needs the true task of each question and cannot "
                    f"route; say which subspace answers (there are: {', '.join(self.subspaces)})"
                )
            return
        if subspace not in self.subspaces:
            hint = registry.nearest(subspace, self.subspaces)
            raise ConfigError(f"subspace: no {subspace!r}{hint} (there are: {', '.join(self.subspaces)})")
        if self.method.layout.routed == "last":
            raise ConfigError(
                f"subspace: those of method {self.method.name} act together below the last block, whatever the "
                "mix; leave it out, or load one alone with peft as the model card shows"
            )

    def _mix(self, features: np.ndarray, subspace: str | None) -> np.ndarray:
        """Weights ``(N, E)``."""
        if subspace is not None:
            return np.tile(np.array([n == subspace for n in self.subspaces], dtype=np.float32), (len(features), 1))
        if not self.subspaces:
            return np.zeros((len(features), 0), dtype=np.float32)
        try:
            return self.method.route(self.subspaces, (self.routing.knowledge, self._known), features)
        except (KeyError, ValueError, IndexError) as error:
            home = self.portable.home
            raise DataError(
                f"{home}: {format.ROUTING} and {format.TOKENS} do not fit together ({error!r}); export the run again"
            ) from None

    def _same_weights(self) -> None:
        loaded = self._backbone.hashes
        wanted = {key: self.routing.hashes[key] for key in _HASHES if key in self.routing.hashes}
        wrong = [
            f"{key} is {loaded[key]}, the run's was {value}" for key, value in wanted.items() if loaded[key] != value
        ]
        if wrong:
            raise ConfigError(
                f"backbone.model: {self._backbone.config.model!r} is not what these subspaces were trained on "
                f"({'; '.join(wrong)}); name the right one (backbone=, --backbone), or take this one nevertheless "
                "(other_weights=True, --other-weights)"
            )

    def _fits(self, name: str, tensors: Tensors) -> None:
        """Check that a subspace has exactly the tensors that the backbone has room for.

        Raises:
            DataError: naming the first that is missing, unknown or of another shape.
        """
        room = {n: tuple(p.shape) for n, p in self._adapters.trainable.items()}
        got = {n: t.shape for n, t in tensors.items()}
        if self.routing.projector == "frozen":
            room = {n: s for n, s in room.items() if not is_projector(n)}
        if room != got:
            wrong = next(n for n in sorted(room.keys() | got.keys()) if room.get(n) != got.get(n))
            raise DataError(
                f"{self.portable.subspaces / name}: {wrong} is {got.get(wrong, 'missing')}, the backbone has room for "
                f"{room.get(wrong, 'no such tensor')}; is it the right backbone?"
            )


def load(
    folder: str | Path,
    *,
    backbone: str | None = None,
    identity: str | None = None,
    device: str | None = None,
    other_weights: bool = False,
) -> Assistant:
    """Load an export (or a run folder) to answer with; see :class:`Assistant`.

    Example:
        >>> assistant = load("exported")
        >>> assistant.answer(["cat.png"], ["What is this?\\nAnswer with a single word."])[0].text
    """
    return Assistant(folder, backbone=backbone, identity=identity, device=device, other_weights=other_weights)


def _method(folder: Portable, backbone: dict[str, Any]) -> Method:
    """The method that routes: a shipped one, since files of unknown origin must not name code to be run.

    Raises:
        ConfigError: it or the model's family is not shipped, or the backbone's settings are invalid. DataError: unknown
            options.
    """
    if registry.is_own(str(backbone.get("family"))):
        raise ConfigError(
            f"{folder.home / format.ROUTING}: backbone.family {registry.label(str(backbone['family']))!r} is code of "
            "its own, which is not loaded from files of others; put the file into fcit/models/families and a line into "
            "MODELS (docs/own-family.md), and train with backbone.family: auto"
        )
    options: dict[str, Any] = dict(folder.routing.method)
    name = options.get("name")
    if name not in registry.METHODS:
        raise ConfigError(
            f"{folder.home / format.ROUTING}: method {registry.label(str(name))!r} answers with code of its own, "
            f"which is not loaded from files of others (known: {', '.join(sorted(registry.METHODS))})"
        )
    adapter = folder.routing.adapter.model_dump()
    answering = {key: getattr(folder.routing, key) for key in _ANSWERING}
    config = RunConfig.model_validate(
        {"method": options, "adapter": adapter, "backbone": backbone, "evaluation": answering}
    )
    problems = contradictions(config)
    if problems:
        raise ConfigError(problems)
    try:
        return registry.resolve("method", name)(config)
    except ValueError as error:
        raise DataError(f"{folder.home / format.ROUTING}: method: {error}") from None


def _device(wanted: str) -> str:
    """The run's device if it is available, else the CPU; all but ``cpu`` are GPUs, ``auto`` several."""
    return wanted if wanted == "cpu" or torch.cuda.is_available() else "cpu"
