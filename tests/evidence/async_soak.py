"""Sites that nobody waits for, under accidents: ``python -m tests.evidence.async_soak`` (part of ``make evidence``).

The deployment, its five sites and the accidents of ``tests.evidence.sites_soak``, with ``federation.mode: async``: the
server steps with every two updates, three sites are at work at a time. SIGKILL to SuperExec and `up` kills it, and it
goes on from its last checkpoint.

What must hold: server updates follow each other without a gap and none is made twice; an update that was on the
operator's disk is used in one of them, or was under way when its stage ended; no client is twice in a server update.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml

from fcit.errors import RunError
from fcit.io.files import read_json
from fcit.runs.folder import RunDir
from tests.evidence import netns
from tests.evidence.sites_soak import SITES, Soak, configured, growth, make_common

RESULT = Path(__file__).parent / "results" / "async_soak.json"
BUFFER, AT_WORK = 2, 3
COUNTED = ("ordered", "arrived", "reused", "lost", "missing", "discarded", "rejected")
ROUND = 8.0  # seconds that a server update is taken to last when the number of rounds is chosen


class AsyncSoak(Soak):
    """The same, whose updates come by the names of their orders."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.late: set[str] = set()

    def _look(self, run: Path) -> None:
        """Note the updates that came late, beside the others."""
        for file in (run / "late").glob("*.json"):
            with suppress(OSError, RunError):
                read_json(file)  # whole: its update is accepted
                self.late.add(file.stem)
        super()._look(run)


def steps(run: Path) -> list[dict[str, Any]]:
    """The server updates of a run folder, oldest first."""
    return [event for event in RunDir(run).read_events() if event["event"] == "round"]


def _repeated(run: Path) -> Iterator[tuple[int, int]]:
    """Server updates that were made twice, or that a client is twice in."""
    made = Counter((step["stage"], step["round"]) for step in steps(run))
    yield from (step for step, times in made.items() if times > 1)
    yield from ((s["stage"], s["round"]) for s in steps(run) if len(set(s["clients"])) < len(s["clients"]))


def unused(soak: AsyncSoak, run: Path) -> list[str]:
    """Late updates that were on the disk, and neither arrived nor were dropped with their stage."""
    events = list(RunDir(run).read_events())
    arrived = {event["order"] for event in events if event["event"] == "arrived"}
    over = {str(event["stage"]) for event in events if event["event"] == "dropped"}
    return sorted(name for name in soak.late - arrived if name.partition("-")[0] not in over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--dry", action="store_true", help="write nothing into results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, common = Path(place), make_common(Path(place))
        net = stack.enter_context(netns.network(SITES)) if netns.available() else None
        config = configured(
            common, "late", max(1, int(60.0 * args.minutes / ROUND / 2)), min_updates=1, mode="async", timeout=60
        )
        raw = yaml.safe_load(config.read_text())
        raw["asynchronous"] = {"buffer": BUFFER, "concurrency": AT_WORK}
        config.write_text(yaml.safe_dump(raw))
        with AsyncSoak(folder, common, net) as soak:
            run = soak.run(config, 60.0 * args.minutes, whole=True)
        events = Counter(event["event"] for event in RunDir(run).read_events())
        made = [(step["stage"], step["round"]) for step in steps(run)]
        results = run / "results.json"
        found = {
            "minutes": args.minutes,
            "packets_dropped": "whole links cut" if net is not None else "not tried: needs root and ip netns",
            "accidents": dict(Counter(accident.kind for accident in soak.accidents)),
            "resumed_by_up": soak.resumed_by_up,
            "resumed_by_hand": soak.resumes,
            "finished": results.is_file(),
            "server_updates": len(made),
            "server_updates_without_a_gap": made == sorted(set(made)),
            "repeated": sorted(_repeated(run)),
            "fresh_updates_seen": len(soak.accepted),
            "fresh_updates_unused": soak.lost(),
            "late_updates_seen": len(soak.late),
            "late_updates_unused": unused(soak, run),
            "real_time": json.loads(results.read_text())["real_time"] if results.is_file() else None,
            "events": {
                k: events[k] for k in ("ordered", "arrived", "reused", "lost", "missing", "discarded", "rejected")
            },
            "growth_last_against_second_quarter": growth(soak.rows),
            "happened": [vars(accident) for accident in soak.accidents],
        }
    print(json.dumps({key: value for key, value in found.items() if key != "happened"}, indent=1))
    if not args.dry:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    bad = found["repeated"] or found["fresh_updates_unused"] or found["late_updates_unused"]
    sys.exit(0 if found["finished"] and found["server_updates_without_a_gap"] and not bad else 1)


if __name__ == "__main__":
    main()
