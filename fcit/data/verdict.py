"""The result of checking records with a model's tokenizer: which it can use, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fcit.data.records import Record, TestRecord


@dataclass
class Verdict:
    """The result for the records of one file, by their positions in it.

    Attributes:
        problems: why a record cannot be used.
        warnings: what only lowers the score, e.g. a true answer longer than the answers that are allowed.
        dropped: position -> turns that do not fit into ``backbone.max_length`` and are not learnt.
        count: records checked.
        tokens: of all that can be used, together; ``longest``: of the longest.
        learnt: those of answers, together; ``most``: of the one that has most.
    """

    problems: dict[int, str] = field(default_factory=dict)
    warnings: dict[int, str] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    count: int = 0
    tokens: int = 0
    longest: int = 0
    learnt: int = 0
    most: int = 0


class Judge(Protocol):
    """Tokenises records and checks them; the verdict on a file is remembered under its origin."""

    def below(self, root: Path) -> Judge:
        """The judge of records with images below another root."""

    def train(self, origin: Sequence[object], places: Sequence[int], records: Sequence[Record]) -> Verdict:
        """Check training records, as they are learnt; ``places`` are their positions in the file."""

    def test(self, origin: Sequence[object], records: Sequence[TestRecord], limit: int) -> Verdict:
        """Check questions, as they are asked; ``limit``: new tokens at most."""
