"""Records of a client's shard that are kept out of its training, and asked as questions (``evaluation.personal``)."""

from __future__ import annotations

from collections.abc import Sequence

from fcit import seeding
from fcit.config.personal import Personal
from fcit.data.records import Record, TestRecord


def kept_out(count: int, settings: Personal | None, seed: int, client: int, task: int) -> list[int]:
    """Ascending positions of the records of a shard of ``count`` that are kept out; the same for every method.

    ``min(most, floor(share * count))`` of them, drawn from (seed, client, task).
    """
    if settings is None:
        return []
    number = min(settings.most, int(settings.share * count))
    rng = seeding.generator(seed, "personal", client, task)
    return sorted(int(place) for place in rng.choice(count, number, replace=False))


def as_questions(records: Sequence[Record]) -> list[TestRecord]:
    """Their first questions as they are trained, with all images in front; the answers are the truths."""
    return [
        TestRecord(str(number), record.images, record.turns[0].question, record.turns[0].answer)
        for number, record in enumerate(records)
    ]
