"""The scope of a run's scores: which numbers may be compared in one column."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from fcit.config import RunConfig
from fcit.config.per_client_checks import per_client
from fcit.data.fingerprints import changes
from fcit.data.fingerprints.changes import Change
from fcit.data.subset import reduced
from fcit.runs.reader import Run

CHANGED = "test data changed during the run"


class ScoreScope(NamedTuple):
    """Scores of different scopes are never put into one column.

    ``reduced`` lists why the scores do not cover the whole benchmark, see :func:`fcit.data.subset.reduced`; it is
    empty for full ones and for old run folders. Scores of a whole validation split are full scores of another split.
    """

    split: str
    reduced: tuple[str, ...]
    per_client: bool = False  # means over clients, each with factors of its own: there is no global model

    @classmethod
    def of(cls, config: RunConfig) -> ScoreScope:
        """The scope by a run's configuration; the test data are compared by :func:`tested`."""
        return cls(config.evaluation.split, tuple(reduced(config)), per_client(config))

    @property
    def label(self) -> str:
        """The remark in tables and figures; empty for full scores of the test split."""
        split = [] if self.split == "test" else [f"{self.split} split"]
        split += ["means over clients with factors of their own"] if self.per_client else []
        return ", ".join([*split, *([f"reduced ({'; '.join(self.reduced)})"] if self.reduced else [])])


def label(run: Run) -> str:
    """The remark about a run's scores in tables and figures."""
    return ", ".join(filter(None, [ScoreScope.of(run.config).label, changed(run)]))


def titled(title: str, remark: str) -> str:
    """A title with the remark about its numbers."""
    return f"{title}, {remark}" if remark else title


# ---------------------------------------------------------------------- data


def _mixed(run: Run) -> bool:
    """Whether the run's scores are on different test data."""
    return any(change["concerns"] == "test" for record in run.data_changes for change in record["changes"])


def changed(run: Run) -> str:
    """The remark about a run whose test data changed; empty for others."""
    return CHANGED if _mixed(run) else ""


def tested(run: Run) -> str:
    """One hash of the questions, references, images and rules that the run was scored with.

    It is empty, i.e. unknown, for old runs without fingerprints and for runs scored at their sites. A run whose test
    data changed has a hash that it shares with no other run.
    """
    if _mixed(run):
        return hashlib.sha256(json.dumps([run.data, run.data_changes]).encode()).hexdigest()
    return changes.tested(run.data)


def called(test: str) -> str:
    """The remark that distinguishes tables of different test data."""
    return f"test data {changes.short(test)}" if test else "test data not recorded"


def groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs whose numbers may share columns, with the remark about them; full ones first.

    Test data are named only if they differ.
    """
    parts_by_label: dict[str, dict[str, list[Run]]] = {"": {}}
    for run in runs:
        parts_by_label.setdefault(label(run), {}).setdefault(tested(run), []).append(run)
    return [
        (remark if len(parts) == 1 else ", ".join(filter(None, [remark, called(test)])), members)
        for remark, parts in parts_by_label.items()
        for test, members in parts.items()
    ]


def why_apart(first: Run, second: Run) -> str:
    """Why two runs scored on different test data do not share a table, in one sentence."""
    head = f"{first.name} and {second.name} do not share a table: "
    unknown = [run.name for run in (first, second) if not tested(run)]
    if unknown:
        return f"{head}what {unknown[0]} was scored on was not recorded, so it may be other test data."
    mixed = [run.name for run in (first, second) if _mixed(run)]
    if mixed:
        return f"{head}the test data of {mixed[0]} changed during the run."
    differences = changes.compare(first.data, second.data, "test")
    sentences = [change.sentence(f"in {first.name}", f"in {second.name}") for change in differences]
    return f"{head}their test data differ ({changes.some(sentences) or 'fingerprints of two versions'})."


def notes(runs: list[Run]) -> list[str]:
    """Notes on runs side by side: differences in test data, which separate them, and in training data."""
    parts = groups(runs)
    firsts = [members[0] for _, members in parts]
    sentences = [
        why_apart(first, second)
        for first, second in pairwise(firsts)
        if ScoreScope.of(first.config) == ScoreScope.of(second.config) and tested(first) != tested(second)
    ]
    for _, members in parts:
        for run in members[1:]:
            differences = [
                c.sentence(f"in {members[0].name}", f"in {run.name}") for c in trained_apart(members[0], run)
            ]
            if differences:
                sentences.append(
                    f"{members[0].name} and {run.name} differ in what they learnt from: {changes.some(differences)}."
                )
    return sentences


def trained_apart(first: Run, second: Run) -> list[Change]:
    """Differences in training data, and in the user's code that both name, between two runs.

    Partitions and reduced data sets depend on settings and seed as well, and are compared only if these are equal.
    """
    if not first.data or not second.data:
        return []
    drawn = [(run.config.data, run.config.seed, run.config.federation) for run in (first, second)]
    return [
        change
        for change in changes.compare(first.data, second.data, "train", "code")
        if "-" not in (change.before, change.now)
        and not change.what.startswith("tracker")
        and (drawn[0] == drawn[1] or not (change.images or "partition" in change.what))
    ]


def accepted(run: Run) -> list[str]:
    """Accepted changes of a run's data and code, with their time; one sentence each."""
    return [
        f"Data or code changed before {datetime.fromtimestamp(record['time'], UTC):%Y-%m-%d %H:%M} UTC, accepted with "
        f"--accept-changed-data: {'; '.join(record['said'])}."
        for record in run.data_changes
    ]
