"""Scores of a dataset, 0..100. The official FCIT rules are reproduced with their quirks and named.

A scorer takes predictions and test records in the same order and returns ``Result``: the score and,
where the rule judges one answer at a time, a mark per answer.

The official generator strips every prediction before it is written, so every rule here does that first;
the official rules leave the ground truth as it is in the file. Nothing else is normalised unless stated.
Our own rules compare folded texts (:func:`fcit.evaluation.wording.folded`), so that they hold in any script.
Captions are scored in :mod:`fcit.evaluation.captions` (ours) and :mod:`fcit.evaluation.coco` (official),
the rules of MLLM-CL's domain part are in :mod:`fcit.evaluation.dcl`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex

from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation.wording import WORD, folded

#: The largest score any rule gives: CIDEr reaches 10, and the mean of seven takes it times 100 like the others.
LARGEST = (6 * 100 + 10 * 100) / 7


@dataclass(frozen=True)
class Result:
    """``score`` in 0..100; ``marks`` are 0..1 per answer, or None for corpus scores.

    The one score that may exceed 100 is ``caption7`` (at most :data:`LARGEST`). ``details`` are further figures of the
    rule by name, on any scale, which are reported beside, as scores by other rules are.
    """

    score: float
    marks: tuple[float, ...] | None = None
    details: Mapping[str, float] = field(default_factory=dict)


Scorer = Callable[[Sequence[str], Sequence[TestRecord]], Result]


@dataclass(frozen=True)
class Corpus:
    """What a rule states of itself that scores all answers together and marks none of them.

    ``parts`` takes a score apart into rows ``(N, k)`` that add up over records, ``score`` makes 0..100 of sums of
    them over a number of records: a bootstrap needs both. ``by_line`` pairs line n of a file of predictions with the
    references of record n, whatever the ids. ``by_blanks`` knows words by the blanks between them. ``slow`` starts
    another program (Java), which takes longer than all else of a look at data.
    """

    parts: Callable[[Sequence[str], Sequence[TestRecord]], np.ndarray] | None = None
    score: Callable[[np.ndarray, int], np.ndarray] | None = None
    by_line: bool = False
    by_blanks: bool = False
    slow: bool = False


def corpus(**facts: Any) -> Callable[[Scorer], Scorer]:
    """Declare that a rule is a corpus score; ``facts`` as for :class:`Corpus`."""

    def declare(scorer: Scorer) -> Scorer:
        vars(scorer)["corpus"] = Corpus(**facts)
        return scorer

    return declare


def corpus_of(scorer: Scorer) -> Corpus | None:
    """What a rule states of itself if it is a corpus score; None for a rule that marks every answer."""
    facts = getattr(scorer, "corpus", None)
    return facts if isinstance(facts, Corpus) else None  # a callable of the user's own may call something else so


def demands(form: str) -> Callable[[Scorer], Scorer]:
    """Declare that a rule can read answers of one form only, whatever a question says (``fcit list form``)."""

    def declare(scorer: Scorer) -> Scorer:
        vars(scorer)["form"] = form
        return scorer

    return declare


def form_of(scorer: Scorer) -> str | None:
    """The form of answers that a rule declares; None for a rule that reads any."""
    form = getattr(scorer, "form", None)
    return form if isinstance(form, str) else None  # a callable of the user's own may call something else so


def of_captions(scorer: Scorer) -> bool:
    """Whether a rule scores captions, all together; another corpus score reads answers as rules for one answer do."""
    return corpus_of(scorer) is not None and form_of(scorer) == "sentence"


def in_turn(scorer: Scorer) -> Scorer:
    """Declare that several questions have one id: those of a picture, whose answers stand in the questions' order."""
    vars(scorer)["in_turn"] = True
    return scorer


def asks_in_turn(scorer: Scorer) -> bool:
    """Whether a rule declares :func:`in_turn`."""
    return getattr(scorer, "in_turn", None) is True  # a callable of the user's own may call something else so


def marked(judge: Callable[[str, TestRecord], float], texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """100 times the mean mark that ``judge`` gives to a stripped prediction and its record.

    The mean is over the predictions, as the official scripts divide.
    """
    marks = tuple(float(judge(text.strip(), record)) for text, record in zip(texts, records, strict=True))
    return Result(100.0 * sum(marks) / len(marks), marks)


def exact(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff equal to the answer, ignoring case (official rule of nine FCIT datasets).

    Quirk: the answer is not stripped, so one with a blank at its end is never given.
    """
    return marked(lambda text, record: text.upper() == record.answer.upper(), texts, records)


_BEGINS = regex.compile(r"[-+]?\.?\p{Nd}|[\p{L}\p{N}]")  # a letter, or a number with its sign
_ENDS = regex.compile(rf"[^{WORD}]+$")


def bare(text: str) -> str:
    """Folded, without blanks and punctuation at both ends; a text of nothing else stays as it is."""
    low = folded(text).strip()
    begin = _BEGINS.search(low)
    return _ENDS.sub("", low[begin.start() :]) if begin else low


def exact_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Equal ignoring case and blanks or punctuation at both ends ("(B)." is "b"): the cleaned rule, ours."""
    return marked(lambda text, record: bare(text) == bare(record.answer), texts, records)


def substring_official(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff the prediction is contained in the answer (official rule of DVQA and FigureQA).

    Quirks: an empty prediction is always right, one letter may be right by accident.
    """
    return marked(lambda text, record: text.upper() in record.answer.upper(), texts, records)


def substring(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule for DVQA and FigureQA, ours: equal ignoring case, and never empty.

    The official direction (prediction inside the answer) would also accept a part of the answer,
    down to one letter, so equality is required.
    """
    return marked(lambda text, record: bool(text) and folded(text) == folded(record.answer.strip()), texts, records)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes ``(x1, y1, x2, y2)``; 0 if they are empty.

    The order of the operations is the official one: near 0.5 the last bit decides.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def box(record: TestRecord) -> list[float]:
    """The four numbers of the ground truth, which the official rule reads whole.

    Of a record with an answer and a box (``answer_bbox``) it is the box.

    Raises:
        DataError: it is no box.
    """
    truth = record.box or record.answer
    numbers = [float(n) for n in NUMBER.findall(truth)]
    if len(numbers) != 4:
        raise DataError(
            f"question {record.question_id!r}: the answer {truth[:80]!r} is not a box like [x1, y1, x2, y2]; "
            "mend it in the test file, or score the data set by another rule"
        )
    return numbers


@demands("box")
def box_iou(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff the four numbers of ``[x1, y1, x2, y2]`` give IoU > 0.5 (the cleaned rule, ours)."""

    def judge(text: str, record: TestRecord) -> bool:
        truth, numbers = box(record), [float(n) for n in NUMBER.findall(folded(text))]
        return len(numbers) == 4 and iou(numbers, truth) > 0.5

    return marked(judge, texts, records)


@demands("box")
def box_iou_official(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The official Grounding rule, IoU > 0.5, with its parsing quirk.

    Brackets are removed and then the first and last remaining characters too, so the last digit of
    y2 is lost and a leading "1.0" reads ".0"; what does not parse is wrong.
    Both boxes are multiplied by the image's longer side (``size`` of the record) before the IoU is taken. On paper
    that changes nothing; in binary it decides where the lost digit halves a box exactly: [0.36, 0.14, 0.89, 0.26],
    read as [.36, 0.14, 0.89, 0.2], has IoU 0.4999999999999999 as it stands and 0.5000000000000001 times 612. A file
    without ``size``, with which the official script ends in an error, is judged as it stands.
    Source: eval_grounding.py as CoIN and MLLM-CL publish it.
    """

    def judge(text: str, record: TestRecord) -> bool:
        truth, trimmed = box(record), text.replace("[", "").replace("]", "")[1:-1]
        try:
            numbers = [float(part) for part in trimmed.split(",")]
        except ValueError:
            return False
        side = max(record.size) if record.size else 1.0
        return len(numbers) == 4 and iou([n * side for n in numbers], [n * side for n in truth]) > 0.5

    return marked(judge, texts, records)
