"""The best constant answer: the score of one text given to every question. A model below it has learnt nothing.

A rule that an empty text satisfies, or a text of all answers together, gives 100; that says something about the rule.
The best text cannot be found for every rule, so a few are tried: the figure is a lower bound.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from fcit import registry
from fcit.data.records import TestRecord
from fcit.data.stream import Stream
from fcit.errors import FCITError
from fcit.evaluation.captions import references
from fcit.evaluation.scorers import box, corpus_of, form_of, of_captions
from fcit.evaluation.wording import tokens

FREQUENT = 20  # most frequent answers that are tried
LISTS = (2, 3, 5, 10, 20)  # how many of them are tried together, for rules that look for the answer anywhere
SAMPLE, CAPTIONED = 2000, 100  # records that candidates are ranked on: by rules for one answer, by captions
FINAL = 3  # of them are scored on all records


class Constant(NamedTuple):
    """A text and its score, 0..100 as the rule has it."""

    text: str
    score: float


def best_constant(scorer: str, records: Sequence[TestRecord]) -> Constant | None:
    """The best of some constant answers, scored on all records; None where the rule cannot score them.

    Candidates: nothing at all, the most frequent answers, several of them in one text, a box in the middle of all;
    for captions "a", "A.", the commonest words and captions of them. They are ranked on a sample, and the best
    :data:`FINAL` are scored on all records, of captions the best one only: that takes as long as scoring a model's
    captions. A rule of the user's own scores only the most frequent answer.

    Args:
        scorer: its name in the registry, or the user's own.
    """
    records = list(records)
    if not records:
        return None
    try:
        if registry.is_own(scorer):
            tried: list[str] = [next(_frequent(records))]
        elif of_captions(registry.resolve("scorer", scorer)):
            tried = _ranked("caption", _phrases(records), _spread(records, CAPTIONED))[:1]
        else:
            texts = [*_texts(records), *_boxes(scorer, records), *_items(scorer, records)]
            tried = _ranked(scorer, texts, _spread(records, SAMPLE))[:FINAL]
        return max((Constant(text, _score(scorer, text, records)) for text in tried), key=lambda c: c.score)
    except FCITError:
        return None
    except Exception:  # a scorer of the user's own may raise anything, and this must not end a run
        if registry.is_own(scorer):
            return None
        raise


def without_java(scorer: str) -> str:
    """The rule; where it would start Java, which takes longer than all else of a check, the cleaned one beside it.

    A slow rule of the user's own has none beside it and is kept: it scores one text only.
    """
    corpus = corpus_of(registry.resolve("scorer", scorer))
    return registry.OFFICIAL_RULES.get(scorer, scorer) if corpus is not None and corpus.slow else scorer


def constants(
    stream: Stream, names: Iterable[str], rule: Callable[[str], str] = lambda scorer: scorer
) -> dict[str, Constant]:
    """The best constant answer of each data set; those that have none are left out.

    Args:
        rule: what to score by instead of a data set's own rule, e.g. :func:`without_java`.
    """
    best = {}
    for name in names:
        try:
            constant = best_constant(rule(stream.datasets[name].scorer), stream.test(name))
        except FCITError:
            continue  # its questions are missing or broken, which is reported elsewhere
        if constant is not None:
            best[name] = constant
    return best


def _score(scorer: str, text: str, records: Sequence[TestRecord]) -> float:
    return float(registry.resolve("scorer", scorer)([text] * len(records), records).score)


def _ranked(scorer: str, texts: Iterable[str], records: Sequence[TestRecord]) -> list[str]:
    """Candidates by their score, the best first; of equals the one that was named first."""
    return sorted(dict.fromkeys(texts), key=lambda text: -_score(scorer, text, records))


def _spread(records: Sequence[TestRecord], most: int) -> Sequence[TestRecord]:
    """Records at equal distances."""
    count = min(most, len(records))
    return [records[n * len(records) // count] for n in range(count)]


def _frequent(records: Sequence[TestRecord]) -> Iterator[str]:
    return (text for text, _ in Counter(record.answer.strip() for record in records).most_common(FREQUENT))


def _texts(records: Sequence[TestRecord]) -> Iterator[str]:
    """Nothing, the most frequent answers, and the first of them together."""
    frequent = list(_frequent(records))
    yield from ("", *frequent)
    for count in LISTS:
        for between in (" ", ", ", ","):
            yield between.join(frequent[:count])


def _boxes(scorer: str, records: Sequence[TestRecord]) -> Iterator[str]:
    """The median box, the middle and the whole of the picture, for rules about boxes."""
    if form_of(registry.resolve("scorer", scorer)) != "box":
        return
    sides = zip(*(box(record) for record in records), strict=True)
    for corners in ([statistics.median(side) for side in sides], [0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]):
        # Three digits: the official rule drops the last one.
        yield "[" + ", ".join(f"{number:.3f}" for number in corners) + "]"


def _items(scorer: str, records: Sequence[TestRecord]) -> Iterator[str]:
    """The commonest items of answers that are lists, for the rules that compare lists."""
    if scorer.startswith("dcl-science"):
        items = Counter(item for record in records for item in record.answer.split(","))
        for count in (*LISTS, 2 * FREQUENT):
            yield ",".join(item for item, _ in items.most_common(count))


def _phrases(records: Sequence[TestRecord]) -> Iterator[str]:
    """Short captions of the commonest words, and the references that are made of them most."""
    captions = [text for record in records for text in references(record)]
    cut = {text: tokens(text) for text in dict.fromkeys(captions)}
    often = Counter(word for text in captions for word in cut[text])
    words = [word for word, _ in often.most_common(12)]
    yield from ("a", "A.")
    yield from (" ".join(words[:count]) for count in (1, 2, 3, 4, 6, 8, 12) if words[:count])
    yield from (text for text, _ in Counter(captions).most_common(2))

    def common(text: str) -> float:
        return sum(often[word] for word in set(cut[text])) / max(len(cut[text]), 5)

    yield from sorted(cut, key=common, reverse=True)[:5]
