"""What the numbers of a run rest on, and so which of them may stand in one column."""

from __future__ import annotations

from typing import NamedTuple

from fcit.config import RunConfig
from fcit.data.subset import reduced
from fcit.results import Run


class Footing(NamedTuple):
    """Numbers on different footings are never put into one column.

    ``reduced`` holds why the numbers are of less than the benchmark, see :func:`fcit.data.subset.reduced`; it is
    empty for full ones, and for run folders from before there was such a thing. Numbers of a whole validation split
    are full numbers of another split.
    """

    split: str
    reduced: tuple[str, ...]

    @classmethod
    def of(cls, config: RunConfig) -> Footing:
        """The footing of a run."""
        return cls(config.evaluation.split, tuple(reduced(config)))

    @property
    def label(self) -> str:
        """What tables and pictures say of such numbers; nothing of full ones of the test split."""
        split = [] if self.split == "test" else [f"{self.split} split"]
        return ", ".join([*split, *([f"reduced ({'; '.join(self.reduced)})"] if self.reduced else [])])


def label(run: Run) -> str:
    """What tables and pictures say of a run's numbers."""
    return Footing.of(run.config).label


def titled(what: str, said: str) -> str:
    """A title with what is said of its numbers."""
    return f"{what}, {said}" if said else what


def groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs whose numbers may share columns, with what is said of them; full ones first."""
    found: dict[str, list[Run]] = {"": []}
    for run in runs:
        found.setdefault(label(run), []).append(run)
    return [(said, members) for said, members in found.items() if members]
