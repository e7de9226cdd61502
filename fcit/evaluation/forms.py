"""Forms of answers: which one an instruction demands, whether a text has it, and a text normalised to it (ours).

A text's blanks at both ends never count. Two rules hold for every form: an empty text has none, and a text that is a
right answer but for case has any, because a right answer is what the instruction asks for. Normalising is conservative:
it takes *one* candidate out of a text and leaves a text alone that has the form already, that holds no candidate, or
that holds several different ones. Where a text says "answer is", "answer:", "option:" or the like exactly once, only
what follows is read.

The share of answers that have the demanded form is MIF in SMoLoRA (Wang et al., 2024, arXiv 2411.13949), whose form of
short answers (at most two words, or the truth) is kept here; all other definitions are ours.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from fcit.data.records import TestRecord
from fcit.evaluation.scorers import NUMBER
from fcit.evaluation.wording import folded, tokens, without_blanks

#: Characters of the longest text that is searched for candidates: what an answer may hold is up to who sends it.
LONGEST = 2000
_MARKER = re.compile(r"\b(?:answer|option|choice)\s*(?:is\b|[:=])\s*:?\s*", re.IGNORECASE)
_PAIRS = ("()", "[]", "{}", '""', "''", "\u201c\u201d", "\u2018\u2019")


def _answer_part(text: str) -> str:
    """What follows the one "answer is" or "answer:" of a text; the whole text if there is none or there are several."""
    parts = _MARKER.split(text)
    return parts[1] if len(parts) == 2 else text


def _only(candidates: Iterable[tuple[object, str]]) -> str | None:
    """The text of the candidates if all have one value, else None."""
    by_value: dict[object, str] = {}
    for value, text in candidates:
        by_value.setdefault(value, text)
    return next(iter(by_value.values())) if len(by_value) == 1 else None


def _unwrapped(text: str) -> str:
    """A text without punctuation at its end, and without quotes or brackets around all of it."""
    while True:
        inner = text.lstrip(" \t\n:*").rstrip(" \t\n.,:;!?*")
        if len(inner) > 1 and inner[0] + inner[-1] in _PAIRS:
            inner = inner[1:-1]
        if inner == text:
            return text
        text = inner


def _truths(record: TestRecord) -> tuple[str, ...]:
    """All right answers to a question."""
    return record.answer, *record.references


class AnswerForm(ABC):
    """A form that answers may be demanded in."""

    def has(self, text: str, record: TestRecord) -> bool:
        """Whether a text has the form, or is a right answer but for case."""
        text = text.strip()
        right = any(folded(text) == folded(truth.strip()) for truth in _truths(record))
        return bool(text) and (right or self.shaped(text, record))

    def normalised(self, text: str, record: TestRecord) -> str:
        """The one candidate of a text without the form; any other text, or one beyond :data:`LONGEST`, as it is."""
        if len(text) > LONGEST or self.has(text, record):
            return text
        found = self.candidate(text.strip(), record)
        return text if found is None else found

    @abstractmethod
    def shaped(self, text: str, record: TestRecord) -> bool:
        """Whether a stripped text that is not empty has the form by its looks."""

    @abstractmethod
    def candidate(self, text: str, record: TestRecord) -> str | None:
        """The answer in a stripped text without the form; None if it holds none or several."""


class Phrase(AnswerForm):
    """At most two words, or as many as the truth has, without punctuation around them; not a list."""

    limit = 2
    _EDGE = re.compile(r"""^["'\u201c\u2018(\[{*:]|[.,:;!?"'\u201d\u2019\]}*]$""")
    _LIST = re.compile(r"[;|\n]|,\s|\s/\s")
    _COPULA = re.compile(r"\b(?:is|are)\s+")
    _ARTICLE = re.compile(r"^(?:an?|the)\s+")  # "The" may begin a title

    @staticmethod
    def _length(text: str) -> int:
        """Number of words: what blanks part, single characters in scripts without blanks."""
        return len(tokens(text) if without_blanks(text) else text.split())

    def shaped(self, text: str, record: TestRecord) -> bool:
        """At most :attr:`limit` words or as many as the truth; separators of a list only where the truth has some."""
        truths = _truths(record)
        listed = self._LIST.search(text) and not any(map(self._LIST.search, truths))
        if listed or self._EDGE.search(text) or _MARKER.search(text):
            return False
        return 0 < self._length(text) <= max(self.limit, *map(self._length, truths))

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """A text without what is around it, or what follows its only "is" or "are", without a lower-case article."""
        part = _answer_part(text)
        readings = [part] if part == text else [self._ARTICLE.sub("", part), part]
        stated = self._COPULA.split(part)
        if len(stated) == 2 and not stated[1].startswith("not "):
            readings.insert(0, self._ARTICLE.sub("", stated[1]))
        return next((found for found in map(_unwrapped, readings) if self.has(found, record)), None)


class Word(Phrase):
    """One word, or as many as the truth has, without punctuation around them; not a list."""

    limit = 1


class Letter(AnswerForm):
    """The label of an option alone: one letter or one digit."""

    _LONE = re.compile(r"\W*([A-Za-z0-9])\W*")
    _LABELS = (
        re.compile(r"(?<!\w)([A-Za-z0-9])\)"),
        re.compile(r"\[([A-Za-z0-9])\]"),
        re.compile(r"^[ \t]*([A-Za-z0-9])[.:](?=\s)", re.MULTILINE),
        re.compile(r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+([A-Z0-9])(?!\w)"),
        re.compile(r"(?<![\w'&-])([B-HJ-Z])(?![\w'&-])"),
        # Words as well: labels only where no other word follows.
        re.compile(r"""(?<![\w'&-])([AI])(?=\s*(?:$|[.,;:!?)\]"']|(?:or|and|because)\b))"""),
    )

    def shaped(self, text: str, record: TestRecord) -> bool:
        """A single letter or digit."""
        return re.fullmatch("[A-Za-z0-9]", text) is not None

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """The only label: alone, in or before a bracket, at the start of a line, after "option", or a lone capital."""
        part = _answer_part(text)
        lone = self._LONE.fullmatch(part)
        if lone:
            return lone[1]
        return _only((label.upper(), label) for pattern in self._LABELS for label in pattern.findall(part))


class Number(AnswerForm):
    """A number in digits alone, with a sign, thousands and decimals."""

    _DIGITS = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    _INSIDE = re.compile(rf"(?<![\w.]){_DIGITS}(?!\.?\w)")
    _WORDS = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty"
    ).split()
    _WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b")

    def shaped(self, text: str, record: TestRecord) -> bool:
        """Digits and nothing else."""
        return re.fullmatch(self._DIGITS, folded(text)) is not None

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """The only value in digits or, from zero to twenty, in English words, which becomes digits."""
        part = folded(_answer_part(text))
        values = [(float(digits.replace(",", "")), digits) for digits in self._INSIDE.findall(part)]
        counted = map(self._WORDS.index, self._WORD.findall(part))
        return _only([*values, *((float(value), str(value)) for value in counted)])


class YesNo(AnswerForm):
    """Yes or no alone."""

    _FIRST = re.compile(r"\W*(yes|no)\s+(?!(?:or|and|nor|one|yes|no)\b)\w")
    #: A "yes" anywhere; a "no" where it stands alone: before a noun it is no answer.
    _ALONE = re.compile(
        r"\b(yes)\b|(?:^|[^\w\s]|\b(?:is|say|so|or|and|not)\s)\s*(no)(?=\s*(?:$|[^\w\s])|\s+(?:or|and|nor)\b)"
    )

    def shaped(self, text: str, record: TestRecord) -> bool:
        """One of the two words and nothing else."""
        return folded(text) in ("yes", "no")

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """The only one of the two that is the first word or stands alone; none where the text says both."""
        part = folded(_answer_part(text)).strip()
        first = self._FIRST.match(part)
        words = [*([first[1]] if first else []), *("".join(found) for found in self._ALONE.findall(part))]
        return _only((word, word) for word in words)


class Box(AnswerForm):
    """Four numbers in square brackets, parted by commas, alone."""

    _WHOLE = re.compile(r"\[\s*{0}(?:\s*,\s*{0}){{3}}\s*\]".format(f"(?:{NUMBER.pattern})"))
    _GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")

    def shaped(self, text: str, record: TestRecord) -> bool:
        """The box and nothing else."""
        return self._WHOLE.fullmatch(folded(text)) is not None

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """The only bracket with four numbers; without such a bracket the numbers of the text, if they are four."""
        part = folded(_answer_part(text))
        groups = [numbers for numbers in map(NUMBER.findall, self._GROUP.findall(part)) if len(numbers) == 4]
        everything = NUMBER.findall(part)
        boxes = groups or ([everything] if len(everything) == 4 else [])
        return _only((tuple(map(float, box)), f"[{', '.join(box)}]") for box in boxes)


class Sentence(AnswerForm):
    """One line of at least three words and at most one sentence, without a label or quotes around it."""

    _LABEL = re.compile(r"(?:answer|caption|description)\s*:\s*", re.IGNORECASE)
    _END = re.compile(r"\b[a-z]{2,}[.!?]\s+[A-Z]|[\u3002\uff01\uff1f]\s*\w")  # not that of an abbreviated name

    def shaped(self, text: str, record: TestRecord) -> bool:
        """Three words with letters or more; no line break, second sentence, label or quotes around it."""
        if "\n" in text or self._END.search(text) or self._LABEL.match(text) or text[0] + text[-1] in _PAIRS:
            return False
        return sum(any(map(str.isalpha, word)) for word in tokens(text)) >= 3

    def candidate(self, text: str, record: TestRecord) -> str | None:
        """A text without its label and the quotes around it."""
        label = self._LABEL.match(text)
        found = text[label.end() :].strip() if label else text
        if len(found) > 1 and found[0] + found[-1] in _PAIRS:
            found = found[1:-1].strip()
        return found if self.has(found, record) else None


# ---------------------------------------------------------------------- of an instruction

_OR_PHRASE = r"\s*\(?or\s+(?:a\s+)?(?:short\s+)?phrase\b"
#: Wordings in the last line of an instruction, by the form that they demand.
_WORDINGS = {
    "yes/no": r"\byes\s*(?:or|/)\s*no\b",
    "letter": r"\b(?:option|choice)\S*\s+letter\b|\b(?:given|single|one|correct)\s+letter\b"
    r"|\bletter\s+(?:directly|only|from)\b|\bletter\s+of\s+(?:the|one)\s+(?:\w+\s+)?(?:option|choice|answer)\b",
    "box": r"\bbounding\s+box|\bbbox\b",
    "sentence": r"\bcaption\b|\b(?:one|single|short|brief|complete|full)\s+sentence\b",
    "number": r"\b(?:with|using|as)\s+(?:an?\s+|one\s+)?(?:single\s+)?(?:number|integer)\b|\bnumber\s+only\b"
    r"|\bonly\s+(?:a|the)\s+number\b",
    "phrase": rf"\bword{_OR_PHRASE}|\bshort\s+phrase\b|\bfew\s+words\b",
    "word": rf"\b(?:single|one)\s+word\b(?!{_OR_PHRASE})",
}


def _wordings(line: str) -> Iterator[tuple[int, str]]:
    for form, wording in _WORDINGS.items():
        yield from ((match.start(), form) for match in re.finditer(wording, line, re.IGNORECASE))


def of_instruction(instruction: str) -> str | None:
    """The form that an instruction demands in words: the last wording of one in its last line; None without any."""
    lines = instruction.strip().splitlines()
    return max(_wordings(lines[-1]), default=(0, None))[1] if lines else None
