"""Faults of a run as a table, from ``events.jsonl``; equal faults of a client are counted together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fcit.runs.reader import Run

#: Events that are faults, with the reason shown if an event gives none.
KINDS = {
    "rejected": "an answer was not used",
    "missing": "no answer in time",
    "discarded": "came after its order was dropped or waited for in vain",
    "lost": "at work when the server ended; others were asked",
    "absent": "not connected",
    "refused": "kept out of the run",
    "left-out": "the sum of its group could not be had",
    "describe-failed": "its statistics were not believed",
    "openings": "would open too many subspaces",
    "memory-lost": "no longer has what it remembered",
    "skipped": "records could not be used",
    "robust-skipped": "too few updates for the robust rule: plain mean",
    "too-few": "too few clients could take part, they were asked again",
    "retry": "too few updates, the round was repeated",
    "evaluate-failed": "questions were not answered, another client was asked",
    "evaluate-again": "questions stayed without an answer, they were asked again",
    "personal-failed": "its own records were not asked",
    "answers-differ": "two clients answered the same questions differently; the first one's answers count",
    "verified": "not all answers that two clients were asked for could be compared",
    "checkpoint-damaged": "a checkpoint could not be read, the one before was used",
    "spill-damaged": "an update kept before a crash could not be read, its client was asked again",
    "data-changed": "data or code are not what they were when the run began; accepted",
    "tracker-failed": "switched off",
}
HEAD = ["what", "who", "where", "why", "times"]
SHOWN = 160  # characters of a reason in the table
_NUMBER = re.compile(r"\d[\d.]*(e[-+]?\d+)?")


@dataclass
class Fault:
    """Equal faults: kind, client, reason (of the first), and where they occurred (``stage.round``, counted from 1)."""

    kind: str
    client: str  # its number, or the home of a robust rule, or a tracker
    reason: str
    trail: str = ""  # the rest of the reason, e.g. a traceback of a client
    where: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def places(self) -> str:
        """The first and the last place."""
        places = [place for place in self.where if place != "-"]
        if not places:
            return "-"
        return places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}"

    @property
    def row(self) -> list[str]:
        """The row under :data:`HEAD`."""
        return [self.kind, self.client, self.places, self.reason, str(self.count)]


def _place(event: dict[str, Any]) -> str:
    if "stage" not in event:
        return "-"
    return str(event["stage"] + 1) + (f".{event['round'] + 1}" if "round" in event else "")


def _reason(event: dict[str, Any]) -> str:
    if event["event"] == "retry" and {"accepted", "needed"} <= event.keys():
        return f"{event['accepted']} usable updates, {event['needed']} needed"
    if event["event"] == "too-few" and {"able", "needed"} <= event.keys():
        return f"{event['able']} clients can take part, {event['needed']} needed"
    if event["event"] == "verified" and {"asked", "compared"} <= event.keys():
        return f"{event['compared']} of {event['asked']} answers that two clients were asked for could be compared"
    if event["event"] == "skipped" and "count" in event:
        return f"{event['count']} records could not be used"
    return str(event.get("reason") or KINDS[event["event"]])


def _is_fault(event: dict[str, Any]) -> bool:
    compared_all = event["event"] == "verified" and "asked" in event and event["asked"] == event.get("compared")
    return event["event"] in KINDS and not compared_all


def _who(event: dict[str, Any]) -> str:
    """The client of a fault, or clients, or what else it is about."""
    if "clients" in event:
        return " and ".join(str(client) for client in event["clients"])
    client = event.get("client", event.get("tracker"))
    return "-" if client is None else str(client)


def _of_round(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Faults that are reported within a ``round`` event."""
    where: dict[str, Any] = {key: event[key] for key in ("stage", "round") if key in event}
    for home in event.get("robust_skipped", []):
        yield {"event": "robust-skipped", "client": home if home == "shared" else f"subspace {home}", **where}
    for client, count in zip(event.get("clients", []), event.get("skipped", []), strict=False):
        if count:
            yield {"event": "skipped", "client": client, "count": count, **where}


def faults(run: Run) -> list[Fault]:
    """The faults of a run, in the order of their first occurrence; equal ones may differ in numbers of their reason."""
    by_key: dict[tuple[str, str, str], Fault] = {}
    for event in run.events:
        for fault_event in _of_round(event) if event["event"] == "round" else [event]:
            if not _is_fault(fault_event):
                continue
            first, _, trail = _reason(fault_event).partition("\n")
            kind, client = fault_event["event"], _who(fault_event)
            key = kind, client, _NUMBER.sub("#", first[:SHOWN])
            fault = by_key.setdefault(key, Fault(kind, client, first[:SHOWN], first[SHOWN:] + trail))
            fault.where.append(_place(fault_event))
            fault.count += 1
    return list(by_key.values())


def table(run: Run) -> list[list[str]]:
    """Head and one row per fault; only the head without faults."""
    return [HEAD, *(fault.row for fault in faults(run))]
