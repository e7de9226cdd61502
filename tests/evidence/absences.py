"""For how many rounds sites are missed after an accident is over, and for how many in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fcit.runs.folder import RunDir

#: What `count` counts, for whoever reads only the figures.
DEFINITION = (
    "whole rounds in a row that a site is missed in after an accident to it is over, that is, that began after it and "
    "ended before the next accident to the same site. A kill and a stop are over at once (nothing but the product "
    "itself mends them), a cut link when it is up, a wrong clock when it is set right. An accident at the operator is "
    "one to every site; it ends no count but that of another one at the operator"
)


@dataclass(frozen=True)
class Round:
    """A round that is over: seconds since 1970, and the clients whose updates were accepted."""

    begin: float
    end: float
    members: frozenset[int]


@dataclass
class Accident:
    """What happened to a site, or to the operator (None), and when it was over; seconds since 1970."""

    kind: str
    site: int | None
    begin: float
    over: float | None


def rounds(run: RunDir) -> list[Round]:
    """The rounds of a run folder, oldest first."""
    return [
        Round(e["time"] - e["seconds"], e["time"], frozenset(int(name.partition("/")[0]) for name in e["loss"]))
        for e in run.read_events()
        if e["event"] == "round"
    ]


def longest(of: Sequence[Round], sites: int) -> dict[int, int]:
    """By site, the most rounds in a row without it, whatever happened to it meanwhile."""
    most = {}
    for site in range(sites):
        gone = best = 0
        for one in of:
            gone = 0 if site in one.members else gone + 1
            best = max(best, gone)
        most[site] = best
    return most


def count(accidents: Sequence[Accident], of: Sequence[Round], sites: int) -> dict[str, dict[str, Any]]:
    """By kind of accident: how many there were, and how often a site was missed in so many rounds (`DEFINITION`).

    ``missed`` has no entry for an accident after which no whole round passed before the next one.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for accident in accidents:
        entry = kinds.setdefault(accident.kind, {"accidents": 0, "longest": 0, "missed": Counter()})
        entry["accidents"] += 1
        for site in range(sites) if accident.site is None else [accident.site]:
            seen = _seen(accident, site, accidents, of)
            if not seen:
                continue
            absent = next((n for n, one in enumerate(seen) if site in one.members), len(seen))
            entry["missed"][absent] += 1
            entry["longest"] = max(entry["longest"], absent)
    return {
        kind: {**entry, "missed": {str(n): entry["missed"][n] for n in sorted(entry["missed"])}}
        for kind, entry in sorted(kinds.items())
    }


def _seen(accident: Accident, site: int, accidents: Sequence[Accident], of: Sequence[Round]) -> list[Round]:
    """The whole rounds between the end of an accident to a site and its next one."""
    if accident.over is None:
        return []
    who = (site,) if accident.site is not None else (site, None)
    later = [other.begin for other in accidents if other.site in who and other.begin > accident.begin]
    until = min(later, default=float("inf"))
    return [one for one in of if one.begin >= accident.over and one.end <= until]
