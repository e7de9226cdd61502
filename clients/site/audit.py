"""The audit trail of a site: ``audit.jsonl``, one line per message received or sent, each sealed by the next.

A line holds the hash of the line before and its own (SHA-256 over its canonical JSON), and is on the disk
before its message leaves. Changing, removing, inserting or reordering lines breaks the chain. Two things the
file alone cannot show: lines cut off at its end, and a chain forged anew as a whole by someone who may write
here. Against both, note the last hash elsewhere now and then: it must be found in the file later.

Tensors and texts are not repeated, only counted: the trail can be shown to others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from flwr.app import Message
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clients.site.audit_summary import describe
from fcit.config import site as sites
from fcit.errors import EXIT_FAILED, EXIT_OK, AuditError
from fcit.io.console import console
from fcit.io.files import sync
from fcit.io.printable import printable

FILE = "audit.jsonl"
START = "0" * 64  # the hash that the first line names as that of the line before
_SHOWN = 40  # last messages in a table
_BLOCK = 4096


def canonical(entry: dict[str, Any]) -> str:
    """The one way to write an entry as JSON."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"))


def seal(entry: dict[str, Any]) -> str:
    """Hash of an entry without its own hash."""
    return hashlib.sha256(canonical({k: v for k, v in entry.items() if k != "hash"}).encode()).hexdigest()


# ---------------------------------------------------------------------- writing


class Trail:
    """The audit trail of one site.

    Args:
        home: the site's folder.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / FILE

    def incoming(self, message: Message) -> dict[str, Any]:
        """Write down an order before it is looked into; returns its entry."""
        return self._append({"direction": "in", **describe(message)})

    def outgoing(self, message: Message, order: dict[str, Any]) -> dict[str, Any]:
        """Write down an answer to the order of that entry before it leaves."""
        named = describe(message)
        # An error names nothing itself, and an answer not its run.
        missing = {name: order.get(name) for name in ("run", "stage", "round", "client") if named.get(name) is None}
        return self._append({"direction": "out", "answers": order["number"], **named, **missing})

    def _append(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Seal an entry and write it, which is on the disk when this returns.

        Raises:
            AuditError: the file cannot be written, or its last line is not one of ours.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.path.with_suffix(".lock"))):
                fresh = not self.path.exists()
                with self.path.open("ab+") as file:
                    number, previous = self._last(file)
                    now = datetime.now(UTC).isoformat(timespec="milliseconds")
                    entry = {"number": number + 1, "time": now, **entry, "previous": previous}
                    entry["hash"] = seal(entry)
                    file.write(canonical(entry).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                if fresh:
                    sync(self.path.parent)
        except OSError as error:
            raise AuditError(f"{self.path}: cannot be written ({error}); nothing leaves this site unrecorded") from None
        return entry

    def _last(self, file: Any) -> tuple[int, str]:
        """Number and hash of the last line. Half a line at the end, left by a kill, is cut off: its message
        never left."""
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start > 0 and tail.count(b"\n") < 2:
            start = max(0, start - _BLOCK)
            file.seek(start)
            tail = file.read(end - start)
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            file.truncate(start + len(whole))
        lines = whole.splitlines()
        if not lines:
            return 0, START
        try:
            entry = json.loads(lines[-1])
            number, hash_ = entry["number"], entry["hash"]
            good = isinstance(number, int) and hash_ == seal(entry)
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise AuditError(
                f"{self.path}: the last line is broken; look at it with `fcit client audit SITE.yaml`, then move the "
                "file away: a new trail is begun"
            )
        return number, hash_


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Verdict:
    """The result of checking a trail.

    Attributes:
        broken: number of the first line (from 1) that is not as it was written; None if all are.
        reason: the fault of that line.
        lines: good lines before it.
        last: hash of the last good line.
        torn: half a line stands at the end; its writer was interrupted, its message never left.
    """

    broken: int | None
    reason: str
    lines: int
    last: str
    torn: bool = False


def entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Lines of a trail with their values, None where a line holds none."""
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield line, value if isinstance(value, dict) else None


def _fault(line: bytes, entry: dict[str, Any] | None, number: int, previous: str) -> str | None:
    """Why a line is not the ``number``-th of its chain, or None."""
    if entry is None:
        return "not a line of an audit trail"
    if entry.get("number") != number:
        return f"it says number {entry.get('number')!r}, expected {number}: lines are missing, added or moved"
    if entry.get("previous") != previous:
        return "it does not follow the line before"
    if entry.get("hash") != seal(entry) or line != canonical(entry).encode() + b"\n":
        return "it was changed"
    return None


def verify(path: Path) -> Verdict:
    """Check a whole trail.

    Raises:
        OSError: it cannot be read.
    """
    count, last = 0, START
    for line, entry in entries(path):
        if not line.endswith(b"\n"):
            return Verdict(None, "", count, last, torn=True)
        problem = _fault(line, entry, count + 1, last)
        if problem is not None or entry is None:
            return Verdict(count + 1, problem or "", count, last)
        count, last = count + 1, str(entry["hash"])
    return Verdict(None, "", count, last)


def _cell(value: Any) -> Text:
    """Values as plain text: text from a server must neither style nor steer the terminal."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return Text(printable(text))


def show(path: Path, screen: Console, most: int = _SHOWN) -> None:
    """Print the last lines of a trail, good or not, and the totals over all."""
    last: deque[dict[str, Any]] = deque(maxlen=most)
    count, size = {"in": 0, "out": 0}, {"in": 0, "out": 0}
    for _, entry in entries(path):
        if entry is None:
            continue
        last.append(entry)
        direction, length = entry.get("direction"), entry.get("bytes")
        if direction in count and isinstance(length, int):
            count[direction] += 1
            size[direction] += length
    table = Table("#", "time (UTC)", "", "run", "round", "client", "bytes", Column("holds", overflow="fold"))
    for entry in last:
        time = str(entry.get("time", ""))[:19].replace("T", " ")
        kind = f"{entry.get('direction')} {entry.get('kind')}"
        when = "" if entry.get("stage") is None else f"{entry['stage']}.{entry.get('round')}"
        cells = (entry.get("number"), time, kind, entry.get("run"), when, entry.get("client"), entry.get("bytes"))
        table.add_row(*(_cell(cell) for cell in cells), _cell(_holds(entry.get("holds"))))
    screen.print(table)
    screen.print(
        f"{path}: {count['in']} orders in ({size['in']:,} bytes), {count['out']} answers out ({size['out']:,} bytes)",
        soft_wrap=True,
        markup=False,
    )


def _holds(holds: Any) -> str:
    """The contents of a message: its type and tensors first."""
    if not isinstance(holds, dict):
        return ""
    rest = dict(holds)
    parts = [str(rest.pop("type", ""))]
    tensors = rest.pop("tensors", None)
    if isinstance(tensors, dict):
        groups = tensors.get("groups")
        named = ", ".join(str(g) for g in groups) if isinstance(groups, list) else groups
        parts.append(f"{tensors.get('count')} tensors of {tensors.get('numbers')} numbers ({named})")
    parts += [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in rest.items()]
    return "; ".join(part for part in parts if part)


def command(site_path: str | os.PathLike[str]) -> int:
    """`fcit client audit SITE.yaml`: print the trail and whether it is as it was written.

    Raises:
        ConfigError: SITE.yaml is wrong.
        AuditError: the trail cannot be read.
    """
    path = sites.load(site_path).folder / FILE
    screen = console()
    if not path.exists():
        screen.print(f"{path}: no message yet")
        return EXIT_OK
    try:
        show(path, screen)
        verdict = verify(path)
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error})") from None
    if verdict.broken is not None:
        sentence = f"BROKEN at line {verdict.broken}: {verdict.reason}; {verdict.lines} good lines before it"
        screen.print(_cell(sentence), soft_wrap=True)
        return EXIT_FAILED
    if verdict.torn:
        screen.print("half a line at the end: its writing was interrupted, and its message never left")
    screen.print(
        f"{verdict.lines} lines, the chain is whole. Lines cut off at the end do not show: note this last hash "
        f"elsewhere, the file must hold it later too\n{verdict.last}",
        soft_wrap=True,
    )
    return EXIT_OK
