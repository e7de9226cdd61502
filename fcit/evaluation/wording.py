"""What is a word, in any script: how our own rules read texts. The official rules read them as their scripts do.

ASCII texts are read as ever: lower-cased runs of letters, digits and apostrophes.
"""

from __future__ import annotations

import re
import unicodedata

import regex

#: Scripts that put no blanks between words: every character counts as one.
BLANKLESS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")

#: Letters, digits and the marks that belong to them (accents, vowel signs), for use inside ``[...]``.
WORD = r"\p{L}\p{N}\p{M}"
#: A letter or digit of a script without blanks. The long-vowel sign is common to two scripts and so in neither.
SINGLE = "[" + "".join(rf"\p{{{script}}}" for script in BLANKLESS) + r"\u30fc]"

_ASCII = re.compile(r"[a-z0-9']+")
_TOKENS = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}]){SINGLE}\p{{M}}*|(?!{SINGLE})[\p{{L}}\p{{N}}'](?:(?!{SINGLE})[{WORD}'])*"
)
_RUN = regex.compile(rf"(?:(?=[{WORD}]){SINGLE}\p{{M}}*){{2,}}")
_UNSEEN = regex.compile(r"[\u00ad\u200b-\u200d\u2060\ufe00-\ufe0f\ufeff]")  # joiners, variants
_APOSTROPHE = regex.compile(r"(?<=\p{L})\u2019(?=\p{L})")  # the typographic one; elsewhere it is a quotation mark
#: Full-width forms of ASCII, the wide blank and the minus sign.
_PLAIN = {0x3000: " ", 0x2212: "-"} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def folded(text: str) -> str:
    """A text without what does not tell words apart: case, how accents are encoded, full-width forms, joiners.

    ASCII is lower-cased and no more.
    """
    if text.isascii():
        return text.lower()
    text = _UNSEEN.sub("", text.translate(_PLAIN))
    # Case folding may take composed letters apart again.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def letters(text: str) -> str:
    """Letters, digits and their marks of a text, folded, without anything between them."""
    text = folded(text)
    return re.sub(r"[^a-z0-9]+", "", text) if text.isascii() else regex.sub(rf"[^{WORD}]+", "", text)


def tokens(text: str) -> list[str]:
    """The words of a text, folded: runs of letters, digits, marks and apostrophes.

    In scripts without blanks (:data:`BLANKLESS`) each character with its marks is one.
    """
    text = folded(text)
    return _ASCII.findall(text) if text.isascii() else _TOKENS.findall(_APOSTROPHE.sub("'", text))


def without_blanks(text: str) -> str:
    """The first stretch of at least two characters of scripts without blanks; empty if there is none."""
    match = None if text.isascii() else _RUN.search(text)
    return str(match[0]) if match else ""
