"""What `fcit data check` reports, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Dataset:
    """One data set; counts are None where a file could not be read."""

    name: str
    files: dict[str, int | None] = field(default_factory=dict)  # path -> bytes
    train: int | None = None
    val: int | None = None
    test: int | None = None
    images: int = 0  # decoded
    bad_images: int = 0
    bad_records: int = 0
    format: str = ""  # of the training file
    conversations: dict[str, int] = field(default_factory=dict)  # number of training records by kind
    pictures: dict[str, int] = field(default_factory=dict)  # number of decoded images by kind
    problems: list[str] = field(default_factory=list)  # the first ones
    notes: list[str] = field(default_factory=list)  # what does not stop any setting from running

    @property
    def good(self) -> bool:
        """Whether it has no problem."""
        return not self.problems


@dataclass
class Partition:
    """The delivered partition for one beta."""

    beta: str
    folder: str
    tasks: int  # that have client files
    of: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Where client files come from in a run."""
        return "generated" if self.tasks == 0 else "delivered" if self.tasks == self.of else "incomplete"


@dataclass
class Setting:
    """One way to run the benchmark."""

    setting: str
    beta: str
    partition: str
    runs: bool
    why: str = ""


@dataclass
class Findings:
    """All findings about a benchmark."""

    benchmark: str
    root: str
    datasets: list[Dataset]
    partitions: list[Partition]
    settings: list[Setting]

    @property
    def good(self) -> bool:
        """Whether every setting that was checked can run."""
        return all(setting.runs for setting in self.settings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"good": self.good, **asdict(self)}
