"""Which questions of a test set are asked where ``evaluation.samples`` wants fewer, and what such numbers are called.

The choice belongs to the data set and to ``evaluation.seed``: every method, stage, seed and machine is asked the
same questions, and fewer of them are always some of the more.
"""

from __future__ import annotations

from fcit import seeding
from fcit.config import RunConfig


def chosen(count: int, dataset: str, samples: int | None, seed: int) -> list[int]:
    """Positions of the questions asked, of ``count``, in the order of the records.

    Args:
        count: questions the test set has.
        dataset: its name; sets of one length get choices that have nothing to do with each other.
        samples: how many are wanted; None, or more than there are, means all.
        seed: ``evaluation.seed``.
    """
    if samples is None or samples >= count:
        return list(range(count))
    # The first of one random order, so that 50 are among 100.
    order = seeding.generator(seed, "questions", dataset).permutation(count)
    return sorted(order[:samples].tolist())


def reduced(config: RunConfig) -> list[str]:
    """Why the numbers of a run are of less than its benchmark, for people; empty where they are full.

    Numbers whose reasons differ must not share a column: they answer other questions, or come of other training.
    """
    reasons = []
    asked = config.evaluation
    if asked.samples is not None:
        reasons.append(f"{asked.samples} questions a {asked.split} set, choice {asked.seed}")
    if config.data.max_records is not None:
        reasons.append(f"{config.data.max_records} training records a data set")
    if config.data.turns == "first":
        reasons.append("the first turn of every conversation")
    return reasons
