"""The rules of CoIN's tasks, as its scripts judge, and cleaned variants of ours.

Read in the repository zackschen/CoIN (``ETrain/Eval/LLaVA/CoIN/eval_*.py``); of TextVQA's, which that repository takes
from Pythia (Facebook, BSD), in a copy of it in bjzhb666/MLLM-CL. VizWiz and VQAv2 are judged by
:func:`fcit.evaluation.scorers.exact`, Grounding by :func:`fcit.evaluation.scorers.box_iou_official`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation.scorers import Result, bare, demands, marked
from fcit.evaluation.wording import folded

_LETTERS = ("A", "B", "C", "D", "E")
_ALONE = re.compile(r"\b(\w)\b")
_OPTION = re.compile(r"\(?([a-z])(?:[).:]|$)")


@demands("letter")
def science(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of CoIN's ScienceQA: the option's letter, or the first character that stands alone.

    "B" and "B. the sun" are B. Of anything else the first letter or digit that is a word by itself, in upper case.
    Quirks: "a cat" is A, "it's B" is S; "(B)" is B. The script also demands that a question has so many options, which
    changes nothing where the answer is one of them.
    """

    def judge(text: str, record: TestRecord) -> bool:
        if text in _LETTERS or (text[:1] in _LETTERS and text[1:3] == ". "):
            return text[0] == record.answer
        alone = _ALONE.search(text)
        return alone is not None and alone[1].upper() in _LETTERS and alone[1].upper() == record.answer

    return marked(judge, texts, records)


def textvqa(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of CoIN's TextVQA: how many of ten people gave this answer, three being enough.

    The mean over the ten of min(1, n / 3), where n counts the other nine who gave it. Texts are compared as
    :func:`evalai` leaves them. Quirks: an answer of one person scores 30; contractions and numbers are unified, accents
    and plurals are not.

    Raises:
        DataError: a question has not ten answers (``references``).
    """
    return marked(lambda text, record: agreement(text, _ten(record), evalai), texts, records)


def textvqa_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of TextVQA, ours: the same agreement, of texts without case and what surrounds them."""
    return marked(lambda text, record: agreement(text, record.references or (record.answer,), bare), texts, records)


def agreement(text: str, answers: Sequence[str], plain: Callable[[str], str]) -> float:
    """The mean over all answers of min(1, n / 3), n being how many of the others equal the text; 0..1.

    One answer alone is compared as it is.
    """
    given = [plain(answer) for answer in answers]
    same = Counter(given)[plain(text)]
    if len(given) == 1:
        return float(same)
    return (same * min(1.0, (same - 1) / 3) + (len(given) - same) * min(1.0, same / 3)) / len(given)


def _ten(record: TestRecord) -> tuple[str, ...]:
    if len(record.references) != 10:
        raise DataError(
            f"question {record.question_id!r}: {len(record.references)} answers, and TextVQA's rule counts ten; "
            "name TextVQA's own annotations under `references`, or score the data set by another rule"
        )
    return record.references


def imagenet(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of CoIN's ImageNet: one of prediction and answer contains the other, as they are written.

    Quirks: an empty prediction is always right, and so is a letter of the name; case matters. The script pairs lines by
    their order; here they are paired by question.
    """
    return marked(lambda text, record: record.answer in text or text in record.answer, texts, records)


def imagenet_clean(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The cleaned rule of ImageNet, ours: the whole answer, or one of the names that commas part in it."""

    def judge(text: str, record: TestRecord) -> bool:
        return bare(text) in {bare(name) for name in (record.answer, *record.answer.split(","))}

    return marked(judge, texts, records)


def gqa(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of CoIN's GQA: the prediction in lower case, without full stops at its end, is the answer.

    Quirk: the answer is taken as it is, so one with a capital or a full stop at its end is never given. The script
    takes answers from GQA's own questions (testdev_balanced); here they are those of the test file.
    """
    return marked(lambda text, record: text.rstrip(".").lower() == record.answer, texts, records)


def ocrvqa(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Official rule of CoIN's OCR-VQA: equal in lower case; a prediction with "Unanswerable" in it is wrong.

    Quirk: the answer is not stripped.
    """
    return marked(
        lambda text, record: "Unanswerable" not in text and text.lower() == record.answer.lower(), texts, records
    )


@demands("letter")
def option_letter(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """The letter of an option: alone, in brackets, or in front of a bracket, stop or colon (the cleaned rule, ours)."""
    return marked(lambda text, record: letter_of(text) == bare(record.answer), texts, records)


def letter_of(text: str) -> str:
    """The letter that a text begins with as an option does ("(B) sun", "b.", "B"), in lower case; empty if none."""
    found = _OPTION.match(folded(text).strip())
    return found[1] if found else ""


# ---------------------------------------------------------------------- how VQA's answers are made comparable

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
#: What contractions are unified to. A word that lacks one of the apostrophes is the same word.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED for at, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}  # the other way round, as published


def evalai(text: str) -> str:
    """An answer as VQA's evaluation server makes it comparable, its oddities included.

    Lower case; no articles; words of numbers up to ten as digits; contractions with their apostrophes. A punctuation
    mark is removed if it stands beside a blank anywhere in the text, and becomes a blank otherwise; of full stops the
    first 32 go that no digit follows.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = cleaned = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _PUNCTUATION:
        cleaned = cleaned.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    words = (_NUMBERS.get(word, word) for word in _STOP.sub("", cleaned, count=32).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
