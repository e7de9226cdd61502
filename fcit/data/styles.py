"""Answer styles: a share of a shard's records is rewritten, so that no task has an answer format of its own.

After answer style diversification (ASD) of "SEFE" (Chen et al., 2025, arXiv 2505.02486), which converts 20 % of a data
set into the other ones of five styles. The templates here are ours: seeded, offline, without a language model, so the
two styles of sentences explain nothing that the record does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fcit import seeding
from fcit.data.records import Record, Turn

#: Words of an answer that can be asked about; a longer one is a sentence already.
WORDS = 8
#: Wrong options of a choice.
OPTIONS = 3

Rewrite = Callable[[str, str, list[str], np.random.Generator], tuple[str, str]]


def _yes_no(question: str, answer: str, others: list[str], rng: np.random.Generator) -> tuple[str, str]:
    right = bool(rng.integers(2))
    return (
        f'{question}\nIs the answer "{answer if right else others[0]}"? Reply with yes or no.',
        "Yes" if right else "No",
    )


def _choice(question: str, answer: str, others: list[str], rng: np.random.Generator) -> tuple[str, str]:
    options = [answer, *others]
    order = rng.permutation(len(options)).tolist()
    lines = [f"{letter}. {options[place]}" for letter, place in zip("ABCD", order, strict=False)]
    return "\n".join([question, *lines, "Reply with the letter of the right option."]), "ABCD"[order.index(0)]


def _brief(question: str, answer: str, others: list[str], rng: np.random.Generator) -> tuple[str, str]:
    return f"{question}\nReply with one short sentence.", f"The answer is {answer.rstrip('.')}."


def _detailed(question: str, answer: str, others: list[str], rng: np.random.Generator) -> tuple[str, str]:
    asked = question.partition("\n")[0].strip()
    return f"{question}\nReply in detail.", f'The question is "{asked}". The answer to it is {answer.rstrip(".")}.'


STYLES: tuple[Rewrite, ...] = (_yes_no, _choice, _brief, _detailed)


def restyled(records: Sequence[Record], share: float, seed: int, *owner: int | str) -> dict[int, Record]:
    """Rewritten records by their positions: a share of all, evenly over the styles, the same for the same seed.

    Which style comes first is drawn too: a shard with fewer rewritten records than styles does not always get the same.

    The last line of the questions is replaced by the style's own if all of them share it. Conversations of several
    turns, and answers of more than :data:`WORDS` words, stay as they are, and so does a record for which the shard has
    no other answer.

    Args:
        records: one client's of one order.
        owner: whose they are, for the random numbers.
    """
    rng = seeding.generator(seed, "styles", *owner)
    chosen = rng.permutation(len(records))[: round(share * len(records))].tolist()
    first = int(rng.integers(len(STYLES)))
    shared = _shared_line(records)
    written = {}
    for number, place in enumerate(chosen):
        record = records[place]
        turn = record.turns[0]
        others = _others(records, turn.answer, rng)
        if len(record.turns) > 1 or len(turn.answer.split()) > WORDS or not others:
            continue
        question = turn.question.removesuffix(shared).rstrip() if shared else turn.question
        question, answer = STYLES[(first + number) % len(STYLES)](question, turn.answer.strip(), others, rng)
        written[place] = Record(record.images, (Turn(question, answer, turn.images),), record.system)
    return written


def in_styles(
    records: Sequence[Record],
    share: float,
    usable: Callable[[Sequence[Record]], list[bool]],
    seed: int,
    *owner: int | str,
) -> list[Record]:
    """The records, those of :func:`restyled` rewritten unless they no longer fit into what a model can learn.

    Args:
        usable: whether each of some records can be learnt.
    """
    written = restyled(records, share, seed, *owner)
    fits = dict(zip(written, usable(list(written.values())), strict=True))
    return [written[place] if fits.get(place) else record for place, record in enumerate(records)]


def _shared_line(records: Sequence[Record]) -> str:
    """The last line of every question, if there are several questions and lines."""
    heads, lines = set(), set()
    for record in records:
        head, _, line = record.turns[0].question.rpartition("\n")
        heads.add(bool(head.strip()))
        lines.add(line)
        if len(lines) > 1:
            return ""
    return lines.pop() if heads == {True} and len(records) > 1 else ""


def _others(records: Sequence[Record], answer: str, rng: np.random.Generator) -> list[str]:
    """A few different answers of the shard; fewer, or none, where most are alike."""
    known, others = {answer.strip().casefold()}, []
    for place in rng.integers(len(records), size=8 * OPTIONS).tolist():
        other = records[place].turns[0].answer.strip()
        if other.casefold() not in known and len(other.split()) <= WORDS:
            known.add(other.casefold())
            others.append(other)
    return others[:OPTIONS]
