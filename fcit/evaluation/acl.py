"""The rules of MLLM-CL's ability part: OCR and visual perception as its scripts judge, mathematics and GUI locally.

The official figure for mathematics takes answers out of texts with a language model behind an API, and that for GUI is
computed by a server which alone has the answers. The two local rules here are ours, bear names of their own, and their
figures are not those of the published tables. Read in the repository bjzhb666/MLLM-CL (``eval_ocr.py``,
``eval_sat.py``, ``eval_math.py``, ``convert_result_to_submission.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from fcit.data.records import TestRecord
from fcit.evaluation.coin import letter_of
from fcit.evaluation.dcl import has_words
from fcit.evaluation.scorers import Result, bare, corpus, marked
from fcit.evaluation.wording import folded

_FORMULA = "Handwritten Mathematical Expression Recognition"
_COUNT = "Count"
_SPACING = str.maketrans("", "", " \n.")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_CAPITAL = re.compile(r"\b[A-H]\b")


def ocr(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of OCR (OCRBench): one of the answers occurs in the prediction, in lower case, without line breaks.

    Formulae in handwriting (the file's ``answer_type``) keep their case and lose their blanks. The script divides by
    10, which is the percentage of its 1,000 questions; here it is of the questions there are.
    Quirks: an empty answer is in everything; "no" is found in "nothing".
    """

    def judge(text: str, record: TestRecord) -> bool:
        if record.kind == _FORMULA:
            return any(_joined(answer) in _joined(text) for answer in _answers(record))
        return any(_one_line(answer) in _one_line(text) for answer in _answers(record))

    return marked(judge, texts, records)


def ocr_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of OCR, ours: one of the answers as whole words; formulae equal but for blanks."""

    def judge(text: str, record: TestRecord) -> bool:
        if record.kind == _FORMULA:
            return any(_joined(answer) == _joined(text) for answer in _answers(record))
        return any(has_words(text, answer) for answer in _answers(record))

    return marked(judge, texts, records)


def _answers(record: TestRecord) -> tuple[str, ...]:
    return record.references or (record.answer,)


def _joined(text: str) -> str:
    return text.strip().replace(" ", "").replace("\n", "")


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", "")


# ---------------------------------------------------------------------- visual perception


def _counted(judge: Callable[[str, TestRecord], bool]) -> Callable[[Sequence[str], Sequence[TestRecord]], np.ndarray]:
    """Rows ``(N, 2)``: right, and asked, for the questions of the task "Count"; for all if the file names no tasks."""

    def parts(texts: Sequence[str], records: Sequence[TestRecord]) -> np.ndarray:
        named = any(record.kind == _COUNT for record in records)
        asked = np.array([not named or record.kind == _COUNT for record in records], dtype=np.float64)
        right = [judge(text.strip(), record) for text, record in zip(texts, records, strict=True)]
        return np.column_stack([asked * right, asked])

    return parts


def _share(sums: np.ndarray, count: int) -> np.ndarray:
    """Percentage of right ones from sums ``(..., 2)``; a draw without a single such question scores 0."""
    return 100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1.0)


_vp_parts = _counted(lambda text, record: _close(record.answer) in _close(text))
_vp_clean_parts = _counted(lambda text, record: has_words(text, record.answer))


def _close(text: str) -> str:
    return text.lower().translate(_SPACING)


@corpus(parts=_vp_parts, score=_share)
def vp(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of visual perception (CV-Bench): the answer occurs in the prediction; the counting questions only.

    Both lose blanks, line breaks and full stops first, and are compared in lower case. The reported figure is that of
    the questions whose ``task`` is "Count"; where no question has this task, all are scored.
    Quirks: 1 is found in 12 and in "1.0", an empty answer in everything.
    """
    return Result(float(_share(_vp_parts(texts, records).sum(axis=0), len(records))))


@corpus(parts=_vp_clean_parts, score=_share)
def vp_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of visual perception, ours: the answer as whole words; the counting questions only."""
    return Result(float(_share(_vp_clean_parts(texts, records).sum(axis=0), len(records))))


# ---------------------------------------------------------------------- local rules, ours


def math_local(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Local rule of mathematics, ours and not the official figure: the last number, the last option, or the last words.

    An answer that is a number: the last number of the prediction is as large. One capital letter: the last capital
    letter A to H that stands alone, or the one that the prediction begins with as an option does. Anything else: the
    prediction ends with it. The official figure has a language model take the answer out of the text.
    """

    def judge(text: str, record: TestRecord) -> bool:
        wanted = bare(record.answer)
        if _NUMBER.fullmatch(wanted):
            numbers = _NUMBER.findall(folded(text))
            return bool(numbers) and _value(numbers[-1]) == _value(wanted)
        if len(wanted) == 1 and wanted.isalpha():
            capitals = _CAPITAL.findall(text)
            return (capitals[-1].lower() if capitals else letter_of(text)) == wanted
        said = bare(text)
        return said == wanted or said.endswith(f" {wanted}")

    return marked(judge, texts, records)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def gui_local(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Local rule of GUI, ours and not the official figure: the option's letter, or the whole answer.

    Case, and blanks and punctuation at both ends, do not matter. The official figure is computed by the server of
    MMT-Bench from the predictions in upper case.
    """

    def judge(text: str, record: TestRecord) -> bool:
        wanted = bare(record.answer)
        option = len(wanted) == 1 and wanted.isalpha()
        return bare(text) == wanted or (option and letter_of(text) == wanted)

    return marked(judge, texts, records)
