"""Shows the progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fcit.io.printable import printable

#: The lines that are shown for events about a client, each after the client's name.
_CLIENT_EVENTS = {
    "absent": "is not connected",
    "missing": "did not answer in time",
    "discarded": "has answered order {order}, which was dropped or overdue: not used",
    "joined": "takes part from now on",
    "refused": "is refused: {reason}",
    "describe-failed": "is left out of the round: {reason}",
    "evaluate-failed": "did not answer the questions: {reason}",
    "openings": "is left out of the round: {reason}",
    "memory-lost": "has lost what it remembered and starts afresh",
}


class ConsoleWatcher:
    """Follows the events of a run; one unit of the bar is a round, an evaluation counts as one too.

    Args:
        clock: seconds, by which the remaining time is estimated: of the events, where they are shown later.
    """

    def __init__(self, console: Console, label: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.console, self.label, self._clock = console, label, clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = self._done_before = 0
        self._stages = self._rounds = 0
        self._begin = clock()
        self._idle = False

    def __enter__(self) -> ConsoleWatcher:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                get_time=self._clock,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=1, note="loading")
        return self

    def __exit__(self, *problem: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, kind: str, **v: Any) -> None:
        """Show one event."""
        handler = getattr(self, f"_on_{kind.replace('-', '_')}", None)
        if handler is not None:
            handler(**v)
        elif kind in _CLIENT_EVENTS:
            client = f"client {v.get('client')}"
            reason = str(v.get("reason", "")).partition("\n")[0].removeprefix(f"{client}: ")
            words = _CLIENT_EVENTS[kind].format(reason=reason, order=v.get("order"))
            self._line(f"{self.label}: {client} {words}")

    def _advance(self, note: str) -> None:
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=note)

    def _line(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def _eta(self) -> str:
        done = max(self._done - self._done_before, 1)  # a run that is resumed has not done the rest now
        left = (self._clock() - self._begin) / done * (self._total - self._done)
        return f"{left:.0f} s left" if left < 120 else f"{left / 60:.1f} min left"

    def _on_start(self, stages: int, rounds: int, done: list[int]) -> None:
        self._stages, self._rounds = stages, rounds
        self._total = stages * (rounds + 1)
        self._done = self._done_before = done[0] * (rounds + 1) + done[1]
        self._begin = self._clock()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total, completed=self._done, note="")
        if any(done):
            self._line(f"{self.label}: resuming at stage {done[0] + 1}, {done[1]} of {rounds} rounds done")

    def _on_data(self, tokens: dict[str, Any], formats: dict[str, str], warnings: list[str]) -> None:
        for form in sorted(set(formats.values())):
            names = ", ".join(name for name, guessed in formats.items() if guessed == form)
            self._line(f"{self.label}: read as format {form}, as they look like it: {names}")
        for name, counts in tokens.items():
            cut = counts.get("train", {})
            if cut.get("turns_dropped"):
                self._line(
                    f"{self.label}: {name}: {cut['turns_dropped']} turns of {cut['cut_short']} conversations are "
                    "beyond backbone.max_length and not learnt"
                )
        for warning in warnings:
            self._line(f"{self.label}: warning: {warning}")

    def _on_client(self, client: int, loss: float | None) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=f"client {client} {_loss([loss])}")

    def _on_verified(self, asked: int, compared: int, differing: int) -> None:
        told = f"{compared} of {asked} answers that two clients were asked for were compared, {differing} differ"
        self._line(f"{self.label}: {told}")

    def _on_round(self, stage: int, round: int, clients: list[int], loss: dict[str, float | None], **v: Any) -> None:
        moved = (v["up"] + v["down"]) / 1e6
        note = f"stage {stage + 1}/{self._stages} round {round + 1}/{self._rounds}"
        private, records = v.get("privacy"), v.get("record_privacy")
        spent = f" epsilon {private['epsilon']:.3g}" if private else ""
        spent += f" record epsilon {records['epsilon']:.3g}" if records else ""
        spent += f" after {v['elapsed'] / 3600:.3g} real h" if "elapsed" in v else ""
        trained = _loss(loss.values()) if loss else "no updates"
        self._advance(f"{note} {trained}{spent}")
        self._say_idle(v.get("idle", []))
        if self._bar is None:
            names = ",".join(str(c) if c >= 0 else "all" for c in _contributors(clients, loss)) or "none"
            self._line(f"{self.label}: {note} clients {names} {trained}{spent} {moved:.2f} MB, {self._eta()}")

    def _on_privacy(self, epsilon: float, delta: float, noise_multiplier: float, releases: int, **v: Any) -> None:
        self._line(
            f"{self.label}: differential privacy of clients: noise multiplier {noise_multiplier:.3g}, epsilon "
            f"{epsilon:.3g} at delta {delta:g} after the whole run, {releases} release{'s' if releases > 1 else ''} "
            f"that count; amplification: {v['amplification']}"
        )

    def _on_record_privacy(
        self, noise_multiplier: float | None, epsilon: float | None, delta: float, trainings: int, **v: Any
    ) -> None:
        asked = f"epsilon {epsilon:.3g}" if epsilon is not None else f"noise multiplier {noise_multiplier:.3g}"
        self._line(
            f"{self.label}: differential privacy of records by the clients: {asked} at delta {delta:g}; a record is "
            f"trained on in up to {trainings} round{'s' if trainings > 1 else ''}"
        )

    def _say_idle(self, clients: list[int]) -> None:
        """Shown once in a run, for the first clients to which it happens."""
        if clients and not self._idle:
            self._idle = True
            names = f"client{'s' if len(clients) > 1 else ''} {', '.join(map(str, clients))}"
            self._line(
                f"{self.label}: {names} learnt nothing: with training.schedule: trainer the first step of a local "
                "epoch has rate 0, and there was no second; shown once, the report counts all such epochs"
            )

    def _on_stage(self, stage: int, row: dict[str, float], untrained: dict[str, float] | None = None) -> None:
        self._advance(f"stage {stage + 1}/{self._stages} {'evaluated' if row else 'done'}")
        if row:
            self._line(f"{self.label}: stage {stage + 1} scores: {_scores(row)}")
        if untrained:
            self._line(f"{self.label}: stage {stage + 1} scores of what is not trained: {_scores(untrained)}")

    def _on_untouched(self, row: dict[str, float]) -> None:
        self._line(f"{self.label}: scores of the untouched model: {_scores(row)}")

    def _on_rejected(self, client: int | None, reason: str, **v: Any) -> None:
        self._line(f"{self.label}: update of client {client} rejected: {reason.splitlines()[0]}")

    def _on_tracker_failed(self, tracker: str, reason: str) -> None:
        self._line(f"{self.label}: {tracker} is told nothing more, the run goes on: {reason.splitlines()[0]}")

    def _on_data_changed(self, reason: str, **v: Any) -> None:
        self._line(f"{self.label}: goes on with changed data: {reason}")

    def _on_reused(self, clients: list[int], **v: Any) -> None:
        names = ", ".join(map(str, clients))
        self._line(f"{self.label}: updates of clients {names} were accepted before the interruption and are used again")

    def _on_dropped(self, clients: list[int], **v: Any) -> None:
        names = ", ".join(map(str, clients))
        self._line(f"{self.label}: the stage is over; what clients {names} are at work on is dropped")

    def _on_lost(self, clients: list[int], **v: Any) -> None:
        names = ", ".join(map(str, clients))
        self._line(f"{self.label}: clients {names} were at work when the server ended; their orders are lost")

    def _on_answers_differ(self, clients: list[int], reason: str, **v: Any) -> None:
        self._line(f"{self.label}: clients {clients[0]} and {clients[1]} do not answer alike: {reason}")

    def _on_evaluate_again(self, reason: str, **v: Any) -> None:
        self._line(f"{self.label}: the questions are asked again; {reason.partition(chr(10))[0]}")

    def _on_too_few(self, able: int, needed: int, **v: Any) -> None:
        self._line(f"{self.label}: {able} clients can take part, {needed} needed; they are asked again")

    def _on_left_out(self, clients: list[int], subspace: str, reason: str, **v: Any) -> None:
        names = ", ".join(map(str, clients))
        self._line(f"{self.label}: clients {names} are left out of the round with subspace {subspace}: {reason}")

    def _on_retry(self, accepted: int, needed: int, **v: Any) -> None:
        self._line(f"{self.label}: {accepted} usable updates, {needed} needed; the round is repeated")


def _scores(row: dict[str, float]) -> str:
    return " ".join(f"{name} {score:.1f}" for name, score in row.items())


def _loss(losses: Iterable[float | None]) -> str:
    """Their mean, of those that were sent."""
    sent = [loss for loss in losses if loss is not None]
    return f"loss {sum(sent) / len(sent):.3f}" if sent else "loss not sent"


def _contributors(clients: Iterable[int], loss: dict[str, float | None]) -> list[int]:
    """Those of a round's clients whose update was used: its losses are named ``client/shard``."""
    used = {int(name.partition("/")[0]) for name in loss}
    return [client for client in clients if client in used]
