"""Which questions of a test set are asked (``evaluation.samples``), and what makes the numbers of a run reduced ones.

The choice belongs to the data set and to ``evaluation.seed``: every method, stage, seed and machine is asked the
same questions, and fewer of them are always some of the more.
"""

from __future__ import annotations

from fcit import seeding
from fcit.config import RunConfig


def chosen(count: int, dataset: str, samples: int | None, seed: int) -> list[int]:
    """Positions of the questions asked, of ``count``, in the order of the records.

    Args:
        count: number of questions in the test set.
        dataset: its name; data sets of equal length get independent choices.
        samples: how many are asked; None, or more than ``count``, means all.
        seed: ``evaluation.seed``.
    """
    if samples is None or samples >= count:
        return list(range(count))
    # The first of one random order, so that 50 are among 100.
    order = seeding.generator(seed, "questions", dataset).permutation(count)
    return sorted(order[:samples].tolist())


def reduced(config: RunConfig) -> list[str]:
    """Why the numbers of a run rest on less than its whole benchmark, in words; empty where they rest on all of it.

    Numbers with different reasons must not share a column: they rest on other questions, or on other training.
    """
    reasons = []
    evaluation = config.evaluation
    if evaluation.samples is not None:
        reasons.append(f"{evaluation.samples} questions a {evaluation.split} set, choice {evaluation.seed}")
    if config.data.max_records is not None:
        reasons.append(f"{config.data.max_records} training records a data set")
    if (personal := evaluation.personal) is not None:
        reasons.append(f"{100 * personal.share:g} % of every shard, at most {personal.most} records, not learnt")
    if config.data.turns == "first":
        reasons.append("the first turn of every conversation")
    return reasons
