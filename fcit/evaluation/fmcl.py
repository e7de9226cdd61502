"""The two rules of POLARIS-FMCL, by which CoIN-6 and CoIN-Long-10 are scored.

Read in the repository beining1008/POLARIS-FMCL (``harness/runner.py``, ``_match``): equality for ScienceQA, ImageNet,
IconQA and AI2D, containment for every other data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from fcit.data.records import TestRecord
from fcit.evaluation.scorers import Result, marked


def equal(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of POLARIS-FMCL for choices and classes: equal in lower case, blanks at both ends aside."""
    return marked(lambda text, record: text.lower() == record.answer.strip().lower(), texts, records)


def contained(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of POLARIS-FMCL for open questions: the answer occurs in the prediction, in lower case.

    Quirks: "no" is found in "nothing", 2 in 12; an empty answer everywhere; naming many answers is never wrong.
    """
    return marked(lambda text, record: record.answer.strip().lower() in text.lower(), texts, records)
