"""Scores answers and keeps them as JSON lines in the official format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.errors import RunError
from fcit.evaluation import following, predictions
from fcit.evaluation.following import Followed
from fcit.evaluation.predictions import Prediction
from fcit.evaluation.scorers import Result
from fcit.federation.messages import Answers
from fcit.io.files import write_text


@dataclass(frozen=True)
class Scored:
    """A dataset's score, the scores by the rules reported beside, the form of its answers, the mean mix, and the
    questions of no subspace.

    Scores are not rounded here: tables round them once (50 of 101 is 49.50, and 49.51 if 49.505 is kept).
    """

    score: float
    also: dict[str, float]
    followed: Followed
    mix: list[float] | None
    unrouted: int = 0


class Parts:
    """Gathers the stretches of one dataset, in whatever order they come."""

    def __init__(self, dataset: str, count: int) -> None:
        self.dataset, self.count = dataset, count
        self._got: dict[int, Answers] = {}

    def add(self, answers: Answers) -> Answers | None:
        """The answers of the whole dataset once nothing is missing, else None."""
        self._got[answers.first] = answers
        if len(self._got) < self.count:
            return None
        ordered = [self._got[first] for first in sorted(self._got)]
        texts = [text for part in ordered for text in part.texts]
        names = ordered[0].tensors
        tensors = {n: np.concatenate([part.tensors[n] for part in ordered]) for n in names}
        return Answers(
            dataset=self.dataset, first=0, texts=texts, seconds=sum(part.seconds for part in ordered), tensors=tensors
        )


def score(benchmark: Benchmark, answers: Answers, file: Path) -> Scored:
    """Score one dataset and write its predictions to ``file``, which is named after stage and dataset.

    Raises:
        RunError: the number of answers is not the number of questions.
    """
    records = benchmark.test(answers.dataset)
    if len(answers.texts) != len(records):
        raise RunError(f"evaluate {answers.dataset}: {len(answers.texts)} answers to {len(records)} questions")
    spec = benchmark.owner(answers.dataset).datasets[answers.dataset]
    result: Result = registry.resolve("scorer", spec.scorer)(answers.texts, records)
    also = dict(result.details) | {n: registry.resolve("scorer", n)(answers.texts, records).score for n in spec.also}
    followed = following.followed(spec, answers.texts, records, result)
    mix = answers.tensors.get("mix")
    # Not the run folder's name: the same configuration and seed write the same file anywhere.
    model, seed = model_id(benchmark.config), benchmark.config.seed
    owner = "/".join([model, str(seed), benchmark.spec.name, *file.with_suffix("").parts[-2:]])
    lines = []
    for i, (text, record) in enumerate(zip(answers.texts, records, strict=True)):
        prediction = Prediction(
            record.question_id,
            record.images,
            record.instruction,
            text,
            record.answer,
            mark=None if result.marks is None else result.marks[i],
            mix=None if mix is None else [round(float(w), 4) for w in mix[i]],
            answer_id=predictions.answer_id(owner, i),
            model_id=model,
        )
        lines.append(predictions.to_line(prediction) + "\n")
    write_text(file, "".join(lines))
    mean = None if mix is None else [round(float(w), 4) for w in mix.mean(axis=0)]
    unrouted = 0 if mix is None or not mix.shape[1] else int((~mix.any(axis=1)).sum())
    return Scored(result.score, also, followed, mean, unrouted)


def model_id(config: RunConfig) -> str:
    """A short name of what answered: backbone and method, e.g. ``llava-1.5-7b-hf-disco``."""
    return f"{PurePath(config.backbone.model).name}-{registry.label(str(config.method['name']))}"
