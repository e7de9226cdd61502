"""Scores of a dataset, 0..100. The official FCIT rules are reproduced with their quirks and named.

A scorer takes predictions and test records in the same order and returns ``Result``: the score and,
where the rule judges one answer at a time, a mark per answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcit.data.records import TestRecord
from fcit.evaluation.captions import words


@dataclass(frozen=True)
class Result:
    """``score`` in 0..100; ``marks`` are 0/1 per answer, or None for corpus scores."""

    score: float
    marks: tuple[float, ...] | None = None


def _marked(judge: Callable[[str, TestRecord], bool], texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    marks = tuple(float(judge(text.strip(), record)) for text, record in zip(texts, records, strict=True))
    return Result(100.0 * sum(marks) / len(marks), marks)


def exact(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff equal to the answer, ignoring case (official rule of nine FCIT datasets)."""
    return _marked(lambda text, record: text.upper() == record.answer.upper(), texts, records)


def substring_official(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff the prediction is contained in the answer (official rule of DVQA and FigureQA).

    Quirk: an empty prediction is always right.
    """
    return _marked(lambda text, record: text.upper() in record.answer.upper(), texts, records)


def substring(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule for DVQA and FigureQA, ours: equal ignoring case, and never empty.

    The official direction (prediction inside the answer) would also accept a part of the answer,
    down to one letter, so equality is asked for.
    """
    return _marked(lambda text, record: bool(text) and text.upper() == record.answer.strip().upper(), texts, records)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes ``(x1, y1, x2, y2)``; 0 if they are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


_NUMBER = re.compile(r"[-+]?\d*\.?\d+")


def _truth(record: TestRecord) -> list[float]:
    return [float(n) for n in _NUMBER.findall(record.answer)]


def box_iou(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Right iff the four numbers of ``[x1, y1, x2, y2]`` give IoU > 0.5 (the cleaned rule, ours)."""

    def judge(text: str, record: TestRecord) -> bool:
        numbers = [float(n) for n in _NUMBER.findall(text)]
        return len(numbers) == 4 and iou(numbers, _truth(record)) > 0.5

    return _marked(judge, texts, records)


def box_iou_official(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The official Grounding rule, IoU > 0.5, with its parsing quirk.

    Brackets are removed and then the first and last remaining characters too, so the last digit of
    y2 is lost and a leading "1.0" reads ".0"; what does not parse is wrong.
    """

    def judge(text: str, record: TestRecord) -> bool:
        trimmed = text.replace("[", "").replace("]", "")[1:-1]
        try:
            numbers = [float(part) for part in trimmed.split(",")]
        except ValueError:
            return False
        return len(numbers) == 4 and iou(numbers, _truth(record)) > 0.5

    return _marked(judge, texts, records)


def caption(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Mean of BLEU-1, BLEU-4, ROUGE-L and min(CIDEr, 1), each times 100: bounded and free of Java.

    Our definition; the official FCIT figure is the mean of seven COCO metrics, CIDEr unbounded.
    The metrics themselves are those of pycocoevalcap, over lower-cased words.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    answers = {i: [words(text)] for i, text in enumerate(texts)}
    references = {i: [words(r) for r in record.references or (record.answer,)] for i, record in enumerate(records)}
    bleu = Bleu(4).compute_score(references, answers, verbose=0)[0]
    rouge = Rouge().compute_score(references, answers)[0]
    cider = Cider().compute_score(references, answers)[0]
    return Result(25.0 * float(bleu[0] + bleu[3] + rouge + min(cider, 1.0)))
