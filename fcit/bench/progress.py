"""Shows the progress of a bench: bars on a terminal, otherwise one line per finished run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fcit.bench.plan import Planned
from fcit.io.files import read_json
from fcit.runs.folder import RunDir


class Follower:
    """Progress of a run by its events; a round counts as one step, and so does an evaluation."""

    def __init__(self, run: Planned) -> None:
        self.run, self.file = run, RunDir(run.folder).events
        self.note, self.share = "loading", 0.0
        self._read = 0
        self._stages, self._rounds = 0, run.config.federation.rounds
        self.look()
        self.first = self.share  # of an earlier bench

    def look(self) -> None:
        """Read new events."""
        if not self.file.is_file():
            return
        if self.file.stat().st_size < self._read:  # a resumed run discards events after its checkpoint
            self._read = 0
        with self.file.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the file was truncated and has grown since: read all of it next time
                self._read = 0
                return
            if event["event"] == "start":
                self._stages, self._rounds = event["stages"], event["rounds"]
                self._at(event["done"][0], event["done"][1])
            elif event["event"] == "round":
                self._at(event["stage"], event["round"] + 1)
            elif event["event"] == "stage":
                self._at(event["stage"] + 1, 0)

    def _at(self, stage: int, rounds: int) -> None:
        if self._stages:
            self.share = (stage * (self._rounds + 1) + rounds) / (self._stages * (self._rounds + 1))
            at = f"stage {stage + 1}/{self._stages} round {rounds}/{self._rounds}"
            self.note = at if stage < self._stages else "finishing"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class BenchWatcher:
    """Follows a schedule; ``done`` runs of ``total`` were finished before it began.

    Args:
        refresh: called after a run has finished and the next one has started.
    """

    def __init__(
        self, console: Console, name: str, total: int, done: int, jobs: int, refresh: Callable[[], None] | None = None
    ) -> None:
        self._refresh, self._stale = refresh, False
        self.console, self.total, self.done, self.failed = console, total, done, 0
        self._begin, self._before = time.monotonic(), float(done)
        self._running: dict[int, Follower] = {}
        self._bar: Progress | None = None
        self._slots: list[TaskID] = []
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._whole = self._bar.add_task(escape(name), total=total, completed=done, note="")
            self._slots = [self._bar.add_task("", total=1.0, note="", visible=False) for _ in range(jobs)]

    def __enter__(self) -> BenchWatcher:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        """Estimated remaining time, by the share of work done."""
        worked = self.done + sum(f.share for f in self._running.values()) - self._before
        ahead = self.total - self.failed - self.done - sum(f.share for f in self._running.values())
        if worked <= 0:
            return ""
        return f", {duration((time.monotonic() - self._begin) / worked * ahead)} left" if ahead > 0 else ""

    def started(self, slot: int, run: Planned) -> None:
        """A run was started in a slot."""
        follower = Follower(run)
        self._before += follower.first
        self._running[slot] = follower
        if self._bar is not None:
            self._bar.update(self._slots[slot], description=escape(run.name), completed=follower.share, visible=True)

    def ended(self, slot: int, run: Planned, problem: str | None) -> None:
        """A run has ended."""
        follower = self._running.pop(slot, None)
        for other in self._running.values():
            other.look()
        if self._bar is not None:
            self._bar.update(self._slots[slot], visible=False)
        if problem is None:
            self._stale = True
            self.done += 1
            last = read_json(RunDir(run.folder).results).get("Last")
            outcome = "Last -" if last is None else f"Last {last:.1f}"
        else:
            self.failed += 1
            self._before -= 0.0 if follower is None else follower.first
            outcome = problem if problem == "stopped" else f"FAILED ({problem})"
        self._line(f"{run.name}: {outcome}; {self.done} of {self.total} runs done{self._left()}")

    def look(self) -> None:
        """Read the events of active runs."""
        if self._stale and self._refresh is not None:
            self._stale = False
            self._refresh()
        if self._bar is None:
            return
        for slot, follower in self._running.items():
            follower.look()
            self._bar.update(self._slots[slot], completed=follower.share, note=follower.note)
        share = self.done + sum(f.share for f in self._running.values())
        self._bar.update(self._whole, completed=share, note=f"{self.done}/{self.total} runs{self._left()}")

    def stopping(self, killed: bool) -> None:
        """The runs were sent a request to stop, or killed."""
        self._line("killed" if killed else "stopping at the next checkpoint of each run; once more kills them")
