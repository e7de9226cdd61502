"""Scoring a file of predictions of any origin, as the official scripts do and by our cleaned rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fcit import registry
from fcit.data.benchmark import Benchmark
from fcit.data.records import TestRecord
from fcit.errors import ConfigError, DataError
from fcit.evaluation.following import followed
from fcit.evaluation.predictions import Prediction, from_others, paired, read
from fcit.evaluation.scorers import Result, asks_in_turn, corpus_of


@dataclass(frozen=True)
class Score:
    """A score by one rule, not rounded.

    Attributes:
        official: whether the rule is that of a published script.
        content: the score of the normalised answers.
        form_share: answers that have the form demanded, 0..100; None where no question demands one.
        demanded: number of questions by the form that they demand.
        details: further figures of the rule.
    """

    rule: str
    score: float
    official: bool
    content: float
    form_share: float | None
    demanded: dict[str, int]
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """A file's scores, the data set's own rule first, and what is unusual about the file."""

    lines: int
    questions: int
    scores: list[Score]
    warnings: list[str] = field(default_factory=list)


def rules(benchmark: Benchmark, dataset: str, rule: str | None = None) -> list[str]:
    """The rules a data set is scored by: its own (or ``rule``) and beside each official one the cleaned one.

    Raises:
        ConfigError: no such data set or rule.
    """
    datasets = benchmark.spec.datasets
    if dataset not in datasets:
        hint = registry.nearest(dataset, list(datasets))
        raise ConfigError(
            f"--dataset: benchmark {benchmark.spec.name!r} has no data set {dataset!r}{hint} (it has: "
            f"{', '.join(datasets)})"
        )
    problem = registry.problem("scorer", rule) if rule is not None else None
    if problem is not None:
        raise ConfigError(f"--rule: {problem}")
    spec = datasets[dataset]
    chosen = [rule] if rule is not None else [spec.scorer, *spec.also]
    cleaned = [registry.OFFICIAL_RULES[name] for name in chosen if name in registry.OFFICIAL_RULES]
    return list(dict.fromkeys([*chosen, *cleaned]))


def score_file(benchmark: Benchmark, dataset: str, file: Path, rule: str | None = None) -> Scores:
    """Score a file of predictions of one data set; the sum is divided by the number of its lines.

    Raises:
        ConfigError: no such data set or rule. DataError: the file or the data cannot be used, naming file and line.
        RunError: a rule cannot be computed here (Java).
    """
    names = rules(benchmark, dataset, rule)
    questions = benchmark.test(dataset)
    predictions = read(file, from_others)
    own = registry.resolve("scorer", benchmark.spec.datasets[dataset].scorer)
    records, warnings = paired(file, predictions, questions, asks_in_turn(own))
    texts = [prediction.text for prediction in predictions]
    scores = []
    for name in names:
        scorer = registry.resolve("scorer", name)
        corpus = corpus_of(scorer)
        scored: Sequence[TestRecord] = records
        if corpus is not None and corpus.by_line:
            scored, unusual = numbered(name, file, predictions, records, questions)
            warnings += unusual
        result: Result = scorer(texts, scored)
        form = followed(benchmark.spec.datasets[dataset], texts, scored, result, scorer)
        rest = name in registry.PUBLISHED, form.content, form.share, form.demanded
        scores.append(Score(name, result.score, *rest, dict(result.details)))
    return Scores(len(predictions), len(questions), scores, warnings)


def numbered(
    rule: str,
    file: Path,
    predictions: Sequence[Prediction],
    records: Sequence[TestRecord],
    questions: Sequence[TestRecord],
) -> tuple[Sequence[TestRecord], list[str]]:
    """The questions as the official caption script pairs them: line n of the file with the references of image n.

    The script ignores the ids. Where the file answers a part of the questions, its numbering
    would pair answers with other images' captions, so they are paired by id, and a warning says so.

    Raises:
        DataError: more lines than questions: the script has no image for them either.
    """
    if len(predictions) > len(questions):
        raise DataError(
            f"{file}, line {len(questions) + 1}: the official caption script numbers the lines 1..{len(predictions)}, "
            f"but there are captions for {len(questions)} images; remove lines that come twice"
        )
    if [record.question_id for record in records] == [q.question_id for q in questions[: len(records)]]:
        return questions[: len(records)], []
    if len(predictions) < len(questions):
        return records, [f"{rule}: paired by question_id, the official script would number the lines and pair others"]
    return questions, [f"{rule}: lines are in another order than the questions; paired line by line, as officially"]
