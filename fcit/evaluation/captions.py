"""The caption score taken apart: a function of sums over records, so that records can be drawn anew.

The metrics are those of pycocoevalcap. CIDEr weighs words by how many records' references have them;
those weights stay the whole set's when records are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fcit.data.records import TestRecord

_TINY, _SMALL = 1e-15, 1e-9  # as pycocoevalcap keeps from dividing by zero


def words(text: str) -> str:
    """What is compared: lower-cased words, digits and apostrophes."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def parts(texts: Sequence[str], records: Sequence[TestRecord]) -> np.ndarray:
    """``(N, 12)``: n-grams found and possible for n = 1..4, length, closest reference length, ROUGE-L, CIDEr."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    answers = {i: [words(text)] for i, text in enumerate(texts)}
    references = {i: [words(r) for r in record.references or (record.answer,)] for i, record in enumerate(records)}
    rouge = np.asarray(Rouge().compute_score(references, answers)[1], dtype=np.float64)
    cider = np.asarray(Cider().compute_score(references, answers)[1], dtype=np.float64)
    rows = []
    for i, answer in answers.items():
        found = cook_test(answer[0], cook_refs(references[i]), "closest")
        rows.append([*found["correct"], *found["guess"], found["testlen"], found["reflen"]])
    return np.column_stack([np.asarray(rows, dtype=np.float64), rouge, cider])


def score(sums: np.ndarray, count: int) -> np.ndarray:
    """25 (BLEU-1 + BLEU-4 + ROUGE-L + min(CIDEr, 1)) from sums ``(..., 12)`` over ``count`` records."""
    precision = (sums[..., :4] + _TINY) / (sums[..., 4:8] + _SMALL)
    ratio = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    short = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    bleu = short * (precision[..., 0] + precision.prod(axis=-1) ** 0.25)
    return 25.0 * (bleu + sums[..., 10] / count + np.minimum(sums[..., 11] / count, 1.0))
