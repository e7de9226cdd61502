"""What records have been through: all that their epsilon depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fcit.privacy.record_accountant import RecordEpsilon, Steps, epsilon


@dataclass
class RecordLedger:
    """Steps of DP-SGD by the records that they can have drawn; the server saves one with every checkpoint.

    Records are named by where they lie, e.g. ``client/task``: a record lies in one place only, so the steps that drew
    from others say nothing about it.

    Attributes:
        spent: ``(noise multiplier, sampling rate, steps)`` of every training, by records.
        stages: epsilon at the end of each stage.
    """

    spent: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    stages: list[float] = field(default_factory=list)

    def add(self, records: str, steps: Steps) -> None:
        """Note a training."""
        self.spent.setdefault(records, []).append((steps.multiplier, steps.rate, steps.number))

    def epsilon(self, delta: float, records: Iterable[str] | None = None) -> RecordEpsilon:
        """The largest epsilon of any record, or of any among some."""
        each = [epsilon(map(Steps._make, self.spent[name]), delta) for name in (records or self.spent)]
        return RecordEpsilon(max((e.pld for e in each), default=0.0), max((e.rdp for e in each), default=0.0))
