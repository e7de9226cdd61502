"""MME: fourteen subtasks of perception and cognition, two yes-or-no questions about every picture.

Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models (arXiv 2306.13394), with the
rule of its calculation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation.scorers import Result, demands, in_turn

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4  # characters of an answer that are read


def answer_of(text: str) -> str:
    """ "yes", "no" or "other": what the first four characters, in lower case, contain; "yes" goes before "no"."""
    start = text.lower()[:_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def subtask_of(record: TestRecord) -> str:
    """The subtask of a question: its id is the subtask, a slash and the picture's name.

    Raises:
        DataError: it is not.
    """
    subtask = record.question_id.partition("/")[0]
    if subtask not in PERCEPTION + COGNITION:
        known = ", ".join(PERCEPTION + COGNITION)
        raise DataError(
            f"question {record.question_id!r}: ids of MME begin with a subtask and a slash, e.g. color/0001.jpg "
            f"(subtasks: {known}); read the release with `format: mme`"
        )
    return subtask


@in_turn
@demands("yes/no")
def mme(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Share of the points that can be had, 0..100 (rule of MME); beside it the official sums and every subtask.

    A subtask has up to 200 points: acc, the share of questions, plus acc+, the share of pictures, that are right, each
    times 100; a picture is right if all its questions are. The official figures are sums of points: ``perception`` (up
    to 2,000 over ten subtasks) and ``cognition`` (up to 800 over four). Questions that were not asked
    (``evaluation.samples``) count in neither.

    Raises:
        DataError: a question is of no subtask.
    """
    right: dict[str, dict[str, list[bool]]] = {}  # subtask -> picture -> its questions
    for text, record in zip(texts, records, strict=True):
        pictures = right.setdefault(subtask_of(record), {})
        hit = answer_of(text.strip()) == record.answer.strip().lower()
        pictures.setdefault(record.question_id, []).append(hit)
    points: dict[str, tuple[float, float]] = {}
    for subtask, pictures in right.items():
        questions = [hit for hits in pictures.values() for hit in hits]
        whole = [all(hits) for hits in pictures.values()]
        points[subtask] = 100.0 * sum(questions) / len(questions), 100.0 * sum(whole) / len(whole)
    details = {
        "perception": sum(sum(points[name]) for name in PERCEPTION if name in points),
        "cognition": sum(sum(points[name]) for name in COGNITION if name in points),
    }
    for name in PERCEPTION + COGNITION:
        if name in points:
            details[f"{name} acc"], details[f"{name} acc+"] = points[name]
    return Result(sum(map(sum, points.values())) / (2 * len(points)), details=details)
