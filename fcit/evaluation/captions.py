"""Our caption score, bounded and free of Java, and the same taken apart into sums over records.

The metrics are those of pycocoevalcap. CIDEr weighs words by how many records' references have them;
those weights stay the whole set's when records are drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcit.data.records import TestRecord
from fcit.evaluation.scorers import Result, corpus, demands
from fcit.evaluation.wording import tokens

_TINY, _SMALL = 1e-15, 1e-9  # with which pycocoevalcap avoids a division by zero

#: Captions by record, as pycocoevalcap takes them.
Captions = dict[int, list[str]]


def words(text: str) -> str:
    """What is compared: the words of a text in any script (:func:`fcit.evaluation.wording.tokens`), by blanks."""
    return " ".join(tokens(text))


def references(record: TestRecord) -> tuple[str, ...]:
    """The reference captions of a record."""
    return record.references or (record.answer,)


def cider(truths: Captions, predicted: Captions) -> tuple[float, np.ndarray]:
    """CIDEr of the corpus and of every record, 0..10; 0 where no reference has a word."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text for captions in truths.values() for text in captions):
        return 0.0, np.zeros(len(truths))
    mean, each = Cider().compute_score(truths, predicted)
    return float(mean), np.asarray(each, dtype=np.float64)


def _compared(texts: Sequence[str], records: Sequence[TestRecord]) -> tuple[Captions, Captions]:
    """Reference captions and predictions, as words."""
    predicted = {i: [words(text)] for i, text in enumerate(texts)}
    return {i: [words(r) for r in references(record)] for i, record in enumerate(records)}, predicted


def _rouge(truths: Captions, predicted: Captions) -> np.ndarray:
    """ROUGE-L of every record, 0..1; a caption without a word scores 0, even against another such."""
    from pycocoevalcap.rouge.rouge import Rouge

    each = np.asarray(Rouge().compute_score(truths, predicted)[1], dtype=np.float64)
    return np.where([bool(caption[0]) for caption in predicted.values()], each, 0.0)


def parts(texts: Sequence[str], records: Sequence[TestRecord]) -> np.ndarray:
    """``(N, 12)``: n-grams matched and possible for n = 1..4, length, closest reference length, ROUGE-L, CIDEr."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    truths, predicted = _compared(texts, records)
    rouge = _rouge(truths, predicted)
    rows = []
    for i, caption in predicted.items():
        counts = cook_test(caption[0], cook_refs(truths[i]), "closest")
        rows.append([*counts["correct"], *counts["guess"], counts["testlen"], counts["reflen"]])
    return np.column_stack([np.asarray(rows, dtype=np.float64), rouge, cider(truths, predicted)[1]])


def score(sums: np.ndarray, count: int) -> np.ndarray:
    """25 (BLEU-1 + BLEU-4 + ROUGE-L + min(CIDEr, 1)) from sums ``(..., 12)`` over ``count`` records."""
    precision = (sums[..., :4] + _TINY) / (sums[..., 4:8] + _SMALL)
    ratio = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    short = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    bleu = short * (precision[..., 0] + precision.prod(axis=-1) ** 0.25)
    return 25.0 * (bleu + sums[..., 10] / count + np.minimum(sums[..., 11] / count, 1.0))


@demands("sentence")
@corpus(parts=parts, score=score)
def caption(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Mean of BLEU-1, BLEU-4, ROUGE-L and min(CIDEr, 1), each times 100: bounded and free of Java.

    Our definition; the official FCIT figure is the mean of seven COCO metrics, CIDEr unbounded
    (:func:`fcit.evaluation.coco.caption7`). The metrics themselves are those of pycocoevalcap, over the words of
    :mod:`fcit.evaluation.wording`: single characters in scripts without blanks.
    """
    from pycocoevalcap.bleu.bleu import Bleu

    truths, predicted = _compared(texts, records)
    bleu = Bleu(4).compute_score(truths, predicted, verbose=0)[0]
    rouge = _rouge(truths, predicted).mean()
    return Result(25.0 * float(bleu[0] + bleu[3] + rouge + min(cider(truths, predicted)[0], 1.0)))
