"""POPE: does the model claim objects that are not in the picture? Yes or no, half of the truths each.

Li et al., Evaluating Object Hallucination in Large Vision-Language Models (EMNLP 2023), with the rule of its
evaluate.py, which LLaVA's eval_pope.py shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from fcit.data.records import TestRecord
from fcit.evaluation.scorers import Result, demands

_NO = {"No", "not", "no"}


def denies(text: str) -> bool:
    """Whether an answer counts as "no": its first sentence has one of the words No, not, no.

    Quirks: everything else is a "yes", an empty text and "NO" or "don't" among it; blanks alone part words.
    """
    return not _NO.isdisjoint(text.split(".")[0].replace(",", "").split(" "))


@demands("yes/no")
def pope(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """F1 of the answer "yes" (official rule of POPE); beside it accuracy, precision, recall and the share of yes.

    Where the official script divides by zero (no "yes" was said, or none is right) the figure is 0.
    """
    said = [not denies(text.strip()) for text in texts]
    true = [record.answer != "no" for record in records]  # as the script: a label that is not "no" is a yes
    pairs = list(zip(said, true, strict=True))
    hits = sum(s and t for s, t in pairs)
    precision, recall = hits / max(sum(said), 1), hits / max(sum(true), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    details = {
        "accuracy": sum(s == t for s, t in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes": sum(said) / len(pairs),
    }
    return Result(100.0 * f1, details={name: 100.0 * value for name, value in details.items()})
