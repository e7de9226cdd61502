"""What the numbers of a run rest on, and so which of them may stand in one column."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from fcit.config import RunConfig
from fcit.data.fingerprints import changes
from fcit.data.fingerprints.changes import Change
from fcit.data.subset import reduced
from fcit.runs.reader import Run

CHANGED = "test data changed during the run"


class ScoreScope(NamedTuple):
    """Numbers on different footings are never put into one column.

    ``reduced`` holds why the numbers are of less than the benchmark, see :func:`fcit.data.subset.reduced`; it is
    empty for full ones, and for run folders from before there was such a thing. Numbers of a whole validation split
    are full numbers of another split.
    """

    split: str
    reduced: tuple[str, ...]

    @classmethod
    def of(cls, config: RunConfig) -> ScoreScope:
        """The footing of a run, as far as its configuration tells it; the other part of it is :func:`tested`."""
        return cls(config.evaluation.split, tuple(reduced(config)))

    @property
    def label(self) -> str:
        """What tables and pictures say of such numbers; nothing of full ones of the test split."""
        split = [] if self.split == "test" else [f"{self.split} split"]
        return ", ".join([*split, *([f"reduced ({'; '.join(self.reduced)})"] if self.reduced else [])])


def label(run: Run) -> str:
    """What tables and pictures say of a run's numbers."""
    return ", ".join(filter(None, [ScoreScope.of(run.config).label, changed(run)]))


def titled(what: str, said: str) -> str:
    """A title with what is said of its numbers."""
    return f"{what}, {said}" if said else what


# ---------------------------------------------------------------------- data


def _mixed(run: Run) -> bool:
    """Whether some of the run's scores are on other test data than others."""
    return any(change["concerns"] == "test" for record in run.data_changes for change in record["changes"])


def changed(run: Run) -> str:
    """What is said of such a run's numbers; nothing of others'."""
    return CHANGED if _mixed(run) else ""


def tested(run: Run) -> str:
    """One hash of the questions, references, images and rules that the run was scored with.

    Runs from before there were fingerprints, and those scored at their sites, share the empty one: nobody knows. A run
    whose test data changed on the way has one of its own.
    """
    if _mixed(run):
        return hashlib.sha256(json.dumps([run.data, run.data_changes]).encode()).hexdigest()
    return changes.tested(run.data)


def called(test: str) -> str:
    """What tells the tables of different test data apart."""
    return f"test data {changes.short(test)}" if test else "test data not recorded"


def groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs whose numbers may share columns, with what is said of them; full ones first.

    Test data are named only where there are several.
    """
    found: dict[str, dict[str, list[Run]]] = {"": {}}
    for run in runs:
        found.setdefault(label(run), {}).setdefault(tested(run), []).append(run)
    return [
        (said if len(parts) == 1 else ", ".join(filter(None, [said, called(test)])), members)
        for said, parts in found.items()
        for test, members in parts.items()
    ]


def why_apart(one: Run, other: Run) -> str:
    """Why two runs that were scored on different test data do not share a table, in one sentence."""
    head = f"{one.name} and {other.name} do not share a table: "
    unknown = [run.name for run in (one, other) if not tested(run)]
    if unknown:
        return f"{head}what {unknown[0]} was scored on was not recorded, so it may be other test data."
    mixed = [run.name for run in (one, other) if _mixed(run)]
    if mixed:
        return f"{head}the test data of {mixed[0]} changed during the run."
    found = changes.compare(one.data, other.data, "test")
    said = [change.sentence(f"in {one.name}", f"in {other.name}") for change in found]
    return f"{head}their test data differ ({changes.some(said) or 'fingerprints of two versions'})."


def notes(runs: list[Run]) -> list[str]:
    """What must be said of the data of runs side by side: test data that keep them apart, training data that differ."""
    parts = groups(runs)
    firsts = [members[0] for _, members in parts]
    found = [
        why_apart(one, other)
        for one, other in pairwise(firsts)
        if ScoreScope.of(one.config) == ScoreScope.of(other.config) and tested(one) != tested(other)
    ]
    for _, members in parts:
        for run in members[1:]:
            said = [c.sentence(f"in {members[0].name}", f"in {run.name}") for c in trained_apart(members[0], run)]
            if said:
                found.append(f"{members[0].name} and {run.name} differ in what they learnt from: {changes.some(said)}.")
    return found


def trained_apart(one: Run, other: Run) -> list[Change]:
    """Training data, and own code that both name, that are not the same in two runs.

    What partitions and shortened data sets hold follows from settings and seed as well, and is compared where
    these are the same.
    """
    if not one.data or not other.data:
        return []
    drawn = [(run.config.data, run.config.seed, run.config.federation) for run in (one, other)]
    return [
        change
        for change in changes.compare(one.data, other.data, "train", "code")
        if "-" not in (change.before, change.now)
        and not change.what.startswith("tracker")
        and (drawn[0] == drawn[1] or not (change.images or "partition" in change.what))
    ]


def accepted(run: Run) -> list[str]:
    """What of a run's data and code was changed before it went on, and when; one sentence for each time."""
    return [
        f"Data or code changed before {datetime.fromtimestamp(record['time'], UTC):%Y-%m-%d %H:%M} UTC, accepted with "
        f"--accept-changed-data: {'; '.join(record['said'])}."
        for record in run.data_changes
    ]
