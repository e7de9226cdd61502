"""Scores answers and keeps them as JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcit import registry
from fcit.data.benchmark import Benchmark
from fcit.errors import RunError
from fcit.evaluation.scorers import Result
from fcit.federation.records import Answers
from fcit.run_dir import write_text


@dataclass(frozen=True)
class Scored:
    """A dataset's score, the scores by the rules reported beside, and the mean mix."""

    score: float
    also: dict[str, float]
    mix: list[float] | None


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
        return Answers(self.dataset, 0, texts, sum(part.seconds for part in ordered), tensors)


def score(benchmark: Benchmark, answers: Answers, file: Path) -> Scored:
    """Score one dataset and write its predictions to ``file``.

    Raises:
        RunError: the number of answers is not the number of questions.
    """
    records = benchmark.test(answers.dataset)
    if len(answers.texts) != len(records):
        raise RunError(f"evaluate {answers.dataset}: {len(answers.texts)} answers to {len(records)} questions")
    spec = benchmark.spec.datasets[answers.dataset]
    result: Result = registry.resolve("scorer", spec.scorer)(answers.texts, records)
    also = {n: round(registry.resolve("scorer", n)(answers.texts, records).score, 4) for n in spec.also}
    mix = answers.tensors.get("mix")
    lines = []
    for i, (text, record) in enumerate(zip(answers.texts, records, strict=True)):
        line: dict[str, Any] = {
            "question_id": record.question_id, "image": record.image, "prompt": record.instruction,
            "text": text, "answer": record.answer,
        }  # fmt: skip
        if result.marks is not None:
            line["mark"] = result.marks[i]
        if mix is not None:
            line["mix"] = [round(float(w), 4) for w in mix[i]]
        lines.append(json.dumps(line))
    write_text(file, "\n".join(lines) + "\n")
    mean = None if mix is None else [round(float(w), 4) for w in mix.mean(axis=0)]
    return Scored(round(result.score, 4), also, mean)
