"""The rules of MLLM-CL's domain part (RS, Med, AD, Sci, Fin), as its scripts judge, and cleaned variants of ours.

All compare lower-cased texts. A prediction with the word "Unanswerable" (looked for as written, before
lower-casing: we assume) is wrong and stays in the denominator. Answers are not stripped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

from fcit.data.records import TestRecord
from fcit.evaluation.scorers import Result, bare, marked
from fcit.evaluation.wording import SINGLE, WORD, folded, letters

#: Sources of the science domain whose answers are compared whole; all others count as MapQA's.
_WHOLE = ("AI2D", "TQA", "VQA", "SciVerse")
_STATES = "Which states"
_SINGLE, _MARK = regex.compile(SINGLE), regex.compile(r"\p{M}")
_GOES_ON = regex.compile(rf"(?!{SINGLE})[{WORD}_]")


def _answerable(judge: Callable[[str, str, TestRecord], float]) -> Callable[[str, TestRecord], float]:
    """A judge of lower-cased prediction and answer, for predictions that do not say "Unanswerable"."""
    return lambda text, record: (
        0.0 if "Unanswerable" in text else float(judge(text.lower(), record.answer.lower(), record))
    )


def words(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of RS and AD: the answer occurs in the prediction, in a longer one next to a blank or stop.

    An answer with a blank in it must occur anywhere. One without loses its full stops; in a prediction
    of several words it must then occur as " answer", "answer ", "answer." or "answer,", in a prediction
    of one word anywhere.
    Quirks: "no" is found in "is not" (after a blank) and in "nothing", 2 in 12; an empty answer everywhere.
    """

    def judge(text: str, answer: str, record: TestRecord) -> bool:
        if " " in answer:
            return answer in text
        answer = answer.replace(".", "")
        if " " in text:
            return any(form in text for form in (f" {answer}", f"{answer} ", f"{answer}.", f"{answer},"))
        return answer in text

    return marked(_answerable(judge), texts, records)


def contained(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of Med: the answer occurs in the prediction.

    Quirks: "no" is found in "normal"; an empty answer everywhere.
    """
    return marked(_answerable(lambda text, answer, record: answer in text), texts, records)


def science(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of Sci, by the source of the image: its file name up to the first underscore (eval_sci.py).

    AI2D, TQA, VQA and SciVerse: equal. MapQA and whatever else: for "Which states" the share of the answer's
    items that are among the prediction's, both cut at commas and not trimmed; else the answer occurs in the
    prediction.
    Quirks: "ohio, texas" shares nothing with "texas, ohio"; naming every state is never wrong.
    """

    def judge(text: str, answer: str, record: TestRecord) -> float:
        if _compared_whole(record):
            return text == answer
        if _STATES in record.instruction:
            truths, items = answer.split(","), text.split(",")
            return sum(truth in items for truth in truths) / len(truths)
        return answer in text

    return marked(_answerable(judge), texts, records)


def choice(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of Fin: the prediction without blanks and full stops is the answer.

    Quirk: an answer that itself holds a blank or a full stop is never given.
    """

    def judge(text: str, answer: str, record: TestRecord) -> bool:
        return text.replace(" ", "").replace(".", "") == answer

    return marked(_answerable(judge), texts, records)


# ---------------------------------------------------------------------- ours


def whole_words(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The answer occurs in the prediction as whole words (cleaned rule of RS, AD and Med, ours).

    Cleaned: "no" is not in "normal" nor 2 in 12 or 2.5, blanks and punctuation around the answer do not
    matter, an empty answer is only right if the prediction is empty. "Unanswerable" is a word like others.
    Where a script has no blanks a word may begin and end anywhere.
    """
    return marked(lambda text, record: has_words(text, record.answer), texts, records)


def has_words(text: str, answer: str) -> bool:
    """Whether the answer occurs in the text as whole words; an empty one only in an empty text."""
    wanted, text = bare(answer), folded(text)
    if not wanted:
        return not text
    at = text.find(wanted)
    while at >= 0:
        if _apart(text, at, at + len(wanted)):
            return True
        at = text.find(wanted, at + 1)
    return False


def _apart(text: str, begin: int, end: int) -> bool:
    """Whether a stretch of a text is not a part of a longer word or number.

    Letters, digits and underscores go on a word, and a digit also behind a point. A character of a script without
    blanks does not, but the marks that belong to it do.
    """
    before, after = text[max(0, begin - 2) : begin], text[end : end + 2]
    if not _SINGLE.match(text[begin]) and (
        _GOES_ON.match(before[-1:]) or (before[-1:] == "." and before[-2:-1].isdecimal())
    ):
        return False
    if _SINGLE.match(text[end - 1]):
        return not _MARK.match(after[:1])
    return not (_GOES_ON.match(after[:1]) or (after[:1] == "." and after[1:2].isdecimal()))


def science_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of Sci, ours: as the official one, by the same sources.

    Cleaned: blanks and punctuation at the ends do not matter; lists of states are cut at commas, trimmed,
    and count items in both / items in either, so that naming every state does not pay; else whole words.
    """

    def judge(text: str, record: TestRecord) -> float:
        if _compared_whole(record):
            return bare(text) == bare(record.answer)
        if _STATES in record.instruction:
            truths, items = ({bare(item) for item in side.split(",")} for side in (record.answer, text))
            return len(truths & items) / len(truths | items)
        return has_words(text, record.answer)

    return marked(judge, texts, records)


def choice_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of Fin, ours: equal ignoring case and everything but letters and digits, on both sides."""
    return marked(lambda text, record: letters(text) == letters(record.answer), texts, records)


def _compared_whole(record: TestRecord) -> bool:
    return record.image.split("/")[-1].split("_")[0] in _WHOLE
