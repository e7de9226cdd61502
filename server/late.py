"""Updates of asynchronous runs on disk: those of the round at hand, and those that crossed a server update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.fedopt.staleness import Late, Staleness
from fcit.io.files import map_tensors, read_json, read_tensors, write_json, write_tensors
from fcit.io.trees import Tensors
from fcit.methods.base import Pair
from fcit.runs.folder import RunDir
from server.spill import Spill, plain
from server.timeline import Done, Flight
from server.validation import Marks


class _Arrival(NamedTuple):
    """How an update of the round joins the server's step."""

    now: Tensors
    tau: Staleness
    file: Path | None  # of one that comes late; None: it is among the round's own


class Received(NamedTuple):
    """A late update that had come, and was not used, when the server ended.

    Attributes:
        update: without its tensors.
        received: bytes of the message that it came in.
        marks: what the validator noted of it.
    """

    update: dict[str, Any]
    received: int
    marks: Marks


class LateSpill(Spill):
    """The updates of one server update; those that crossed an earlier one are each in a file of their own.

    On a simulated clock such a file waits until its time has come. In real time it is written when the update comes,
    with its head beside it, so that a server that is killed before it is used finds it again.

    A file stays until no checkpoint that is kept needs it, so that a run can also go on from the one before the last.

    Args:
        rule: how late updates take part.
        flights: the orders under way, by name, of the run's progress: a checkpoint needs the files of those that it
            has, whether their updates have come or are still to come.
    """

    def __init__(self, run: RunDir, rule: Late, flights: Mapping[str, Flight]) -> None:
        super().__init__(run)
        self._late, self._rule, self._arrivals = run.late, rule, dict[Pair, _Arrival]()
        self._flights = flights
        self._before = set(flights)  # those of the checkpoint before

    def _file(self, name: str) -> Path:
        return self._late / f"{name}.safetensors"

    def _head_file(self, name: str) -> Path:
        return self._late / f"{name}.json"

    def keep(self, name: str, order: TrainOrder) -> dict[str, Any]:
        """Take an update out of the round and keep it until it comes; returns it without its tensors.

        Raises:
            DiskFull: there is no room for it.
        """
        pair, base = (order.client, order.shard), order.trained
        tensors = read_tensors(self._path(pair, "safetensors"))
        kept = self._rule.kept({name: tensors[name] for name in base}, base)
        # The checkpoint that names it is on the disk only after it.
        write_tensors(self._file(name), {**tensors, **kept})
        return plain(self._heads.pop(pair))

    def receive(
        self, name: str, order: TrainOrder, update: ClientUpdate, received: int, marks: Marks
    ) -> dict[str, Any]:
        """Keep an update that has come late in real time; returns it without its tensors.

        Raises:
            DiskFull: there is no room for it.
        """
        base, head = order.trained, plain(update)
        kept = self._rule.kept({name: update.tensors[name] for name in base}, base)
        write_tensors(self._file(name), {**update.tensors, **kept})
        # The head goes last and says that the tensors are whole.
        values = {"order": asdict(Done.of(order)), "update": head, "received": received, "marks": marks}
        write_json(self._head_file(name), values)
        return head

    def recovered(self, flight: Flight) -> Received | None:
        """What :meth:`receive` kept of the update to an order, or None.

        Raises:
            RunError: it is damaged.
        """
        file = self._head_file(flight.name)
        raw = read_json(file) if file.is_file() and self._file(flight.name).is_file() else {}
        # By this name a checkpoint that was passed over may have known another order.
        if raw.get("order") != asdict(flight.order):
            return None
        try:
            update = codec.decode(codec.encode(ClientUpdate(**raw["update"], tensors={})), ClientUpdate)
            return Received(plain(update), int(raw["received"]), Marks(*raw["marks"]))
        except (CodecError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{file}: not an update that was kept ({error!r})") from None

    def join(self, pair: Pair, now: Tensors, tau: Staleness) -> None:
        """Let a fresh update take part in the round.

        Args:
            now: the server's tensors that it is about.
        """
        self._arrivals[pair] = _Arrival(now, tau, None)

    def join_late(self, name: str, update: dict[str, Any], now: Tensors, tau: Staleness) -> None:
        """Let an update that was kept take part in the round.

        Args:
            update: what :meth:`keep` returned.

        Raises:
            RunError: its file is gone.
        """
        if not self._file(name).is_file():
            raise RunError(f"{self._file(name)}: is missing, and the checkpoint needs it; start the run anew")
        head = ClientUpdate(**update, tensors={})
        self.take(head)
        self._arrivals[head.client, head.shard] = _Arrival(now, tau, self._file(name))

    def _tensors(self, key: Pair) -> Tensors:
        now, tau, file = self._arrivals[key]
        update = map_tensors(file or self._path(key, "safetensors"))
        return self._rule.joined(update, now, tau, file is not None)

    def clear(self) -> None:
        """Forget the round, after the checkpoint that holds its aggregate."""
        super().clear()
        self._arrivals.clear()
        wanted = self._flights.keys() | self._before
        for kind in ("json", "safetensors"):  # without its head a file does not count
            for file in self._late.glob(f"*.{kind}") if self._late.is_dir() else ():
                if file.stem not in wanted:
                    file.unlink()
        self._before = set(self._flights)
