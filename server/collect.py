"""The updates of a round: who is asked, what is believed, what is kept."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fcit import registry
from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.records import ClientUpdate, Description, ProbeOrder, TrainOrder
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.runs.folder import RunDir
from fcit.runs.trackers import Watcher
from server import descriptions
from server.checkpoint import Progress
from server.courier import NOBODY, Courier
from server.handshake import Handshake
from server.orders import Orders
from server.participants import Slot
from server.spill import Spill
from server.stop import Stop
from server.validation import Validator, short

#: How a client says that it does not have the memory it is asked for: a site's code, or the error's name.
_LOST = re.compile(r"\b(memory-lost|MemoryLost)\b")


class Updates:
    """Everything of a run that deals with clients' descriptions and updates; :meth:`_gather` is what it is for."""

    make: Factory  # of subspaces, once a client was probed
    _identity_width: int

    def __init__(self, config: RunConfig, stream: Stream, run: RunDir, grid: Grid, watcher: Watcher) -> None:
        self.config, self.stream, self.run, self.watcher = config, stream, run, watcher
        self.method: Method = registry.resolve("method", config.method["name"])(config)
        self.fedopt: FedOpt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.orders = Orders(config, stream, self.method, self.fedopt, run.id)
        self.state, self.progress = ServerState(), Progress()
        self.validator = Validator.of(config, self.orders.walks)
        self.spill = Spill(run)
        self.stop = Stop()
        clients = 1 if self.method.pooled else config.federation.clients
        self.courier = Courier(grid, config.federation, clients, self.progress.traffic, self._event_here, self.stop)
        self.handshake = Handshake(self.courier, ProbeOrder(self.orders.text, run.id), run, config.federation)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = self.progress.seconds.get(part, 0.0) + time.perf_counter() - begin
            self.progress.seconds[part] = round(spent, 4)

    def _event(self, kind: str, **values: Any) -> None:
        self.run.event(kind, **values)
        self.watcher.say(kind, **values)

    def _event_here(self, kind: str, **values: Any) -> None:
        self._event(kind, **{**self._where, **values})

    @property
    def _where(self) -> dict[str, int]:
        return {"stage": self.progress.stage, "round": self.progress.round}

    # ------------------------------------------------------------------ asking

    def _gather(self, sampled: list[Slot]) -> dict[Pair, TrainOrder]:
        """Ask for updates until enough are accepted; returns the orders that those answer.

        A repetition asks only those whose update is lacking. The others would train the same order on the
        same data again: the same bits, hours later.
        """
        needed = min(self.config.federation.min_updates, len(sampled))
        answered: dict[Pair, TrainOrder] = {}
        for attempt in itertools.count():
            self.handshake.update()
            here = self._present([slot for slot in sampled if slot.pair not in answered])
            with self._timed("describe"):
                self._assign([slot for slot in here if attempt == 0 or slot.pair not in self.state.assigned])
            # Made anew for a repetition: a client that has lost what it was sent earlier gets it again.
            orders = {
                slot.pair: self.orders.train(self.state, self.progress, slot)
                for slot in sampled
                if slot.pair in self.state.assigned and slot.pair not in answered
            }
            if attempt == 0:
                answered |= self._adopt(orders)
            asked = [slot.pair for slot in here if slot.pair in orders and slot.pair not in answered]
            answered |= self._collect({pair: orders[pair] for pair in asked}, attempt)
            if len(answered) >= needed:
                break
            self._repeat(len(answered), needed, attempt)
        return answered

    def _present(self, slots: list[Slot]) -> list[Slot]:
        """The participations whose client is connected."""
        for slot in slots:
            if self.courier.node(slot.client) == NOBODY:
                self._event("absent", client=slot.client, **self._where)
        return [slot for slot in slots if self.courier.node(slot.client) != NOBODY]

    def _repeat(self, accepted: int, needed: int, attempt: int) -> None:
        """Too few updates: go on to another attempt, perhaps after a pause.

        Raises:
            RunError: there is none.
        """
        federation = self.config.federation
        again = {"wait": True, "stop": False, "retry": attempt < federation.retries}[federation.on_too_few]
        if not again:
            raise RunError(
                f"stage {self.progress.stage + 1}, round {self.progress.round + 1}: {accepted} usable updates, "
                f"{needed} needed (federation.min_updates), {attempt + 1} attempts (federation.on_too_few: "
                f"{federation.on_too_few}); reasons are in {self.run.events}; `fcit resume {self.run.path}` tries "
                "again and asks only those whose update is lacking"
            )
        self._event("retry", accepted=accepted, needed=needed, **self._where)
        if federation.on_too_few == "wait":
            self.stop.pause(federation.pause)

    def _adopt(self, orders: dict[Pair, TrainOrder]) -> dict[Pair, TrainOrder]:
        """Take over updates that an earlier process of this run accepted in this round before it ended."""
        adopted = {}
        for pair, order in orders.items():
            try:
                update = self.spill.find(order)
            except RunError as error:
                self._event("spill-damaged", client=pair[0], reason=str(error), **self._where)
                continue
            if update is None:
                continue
            problem = self._doubt(order, update)
            if problem is not None:
                self._reject(problem, pair[0])
                continue
            self.courier.count(order, update)
            self.spill.take(update)
            self._accepted(update)
            adopted[pair] = order
        if adopted:
            self._event("reused", clients=[client for client, _ in adopted], **self._where)
        return adopted

    def _collect(self, orders: dict[Pair, TrainOrder], attempt: int) -> dict[Pair, TrainOrder]:
        """Send orders, validate what comes back, spill what is accepted; returns the orders of that."""
        answered: dict[Pair, TrainOrder] = {}
        waiting = dict(orders)
        messages = [(self.courier.node(order.client), order) for order in orders.values()]
        with self._timed("training"):
            group = f"{self.progress.stage}.{self.progress.round}.{attempt}"
            for reply in self.courier.send("train", messages, group):
                self._heed_loss(reply, waiting)
                problem, update = self._read_update(reply, waiting)
                if problem is not None or update is None:
                    client = self.courier.client(reply.metadata.src_node_id) if update is None else update.client
                    self._reject(problem or "empty", client)
                    continue
                pair = (update.client, update.shard)
                self.spill.put(orders[pair], update)
                self._accepted(update)
                answered[pair] = orders[pair]
        for pair in waiting:
            self._event("missing", client=pair[0], **self._where)
        return answered

    def _accepted(self, update: ClientUpdate) -> None:
        # A client that was never described is held to the size it first reported.
        self.progress.declared.setdefault(f"{update.client}/{update.shard}", update.examples)
        self.watcher.say("client", client=update.client, loss=update.loss)

    def _heed_loss(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> None:
        """Forget what a client was believed to remember, if it says that this is lost: its next order starts afresh."""
        if not reply.has_error() or not _LOST.search(reply.error.reason.partition("\n")[0]):
            return
        node = reply.metadata.src_node_id
        for client in {client for client, _ in waiting if self.courier.node(client) == node}:
            version = self.progress.memories.pop(str(client), "")
            groups = self.progress.constants.pop(str(client), [])
            self._event("memory-lost", client=client, version=version, constants=groups, **self._where)

    # ------------------------------------------------------------------ judging

    def _assign(self, slots: list[Slot]) -> None:
        """Describe the pairs that are new and let the method give every pair its subspace."""
        stats: dict[Pair, Stats] = {}
        if self.method.needs_stats:
            stats = self._described({s.pair: s for s in slots if s.pair not in self.state.assigned})
            # A pair that could not be described is left out of this round.
            slots[:] = [s for s in slots if s.pair in stats or s.pair in self.state.assigned]
        left = descriptions.assign(
            self.method,
            self.state,
            stats,
            [s.pair for s in slots],
            self.make,
            self.config.federation,
            self.progress.openings,
        )
        for pair, reason in left.items():
            self._event("openings", client=pair[0], reason=reason, **self._where)
        slots[:] = [s for s in slots if s.pair not in left]

    def _described(self, new: dict[Pair, Slot]) -> dict[Pair, Stats]:
        """Statistics of new pairs, as far as they are believed."""
        stats: dict[Pair, Stats] = {}
        orders = [(self.courier.node(s.client), self.orders.describe(s, self.progress.stage)) for s in new.values()]
        for reply in self.courier.send("query.describe", orders, "describe"):
            client, problem, answer = self._read_description(reply, new)
            if answer is None or problem is not None:
                self._event("describe-failed", client=client, reason=short(problem or "empty"), **self._where)
            elif (answer.client, answer.shard) not in stats:
                stats[answer.client, answer.shard] = Stats(answer.tensors["total"], answer.count)
        for pair, reason in descriptions.outliers(stats, self.method, self.progress.lengths).items():
            self._event("describe-failed", client=pair[0], reason=reason, **self._where)
            del stats[pair]
        self.progress.declared |= {f"{client}/{shard}": s.count for (client, shard), s in sorted(stats.items())}
        return stats

    def _read_description(
        self, reply: Message, new: dict[Pair, Slot]
    ) -> tuple[int | None, str | None, Description | None]:
        """Whose answer it is, why it is not believed, and the answer."""
        client = self.courier.client(reply.metadata.src_node_id)
        if reply.has_error():
            return client, reply.error.reason, None
        try:
            answer = codec.decode(reply.content, Description)
        except CodecError as error:
            return client, str(error), None
        if reply.metadata.src_node_id != self.courier.node(answer.client):
            return client, f"answered for client {answer.client}", None
        slot = new.get((answer.client, answer.shard))
        if slot is None:
            return client, "was not asked", None
        most = descriptions.most_records(self.config, self.stream, slot.client, slot.tasks)
        return client, descriptions.problem(answer, self._identity_width, most), answer

    def _read_update(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> tuple[str | None, ClientUpdate | None]:
        if reply.has_error():
            # The node's order is answered, if badly; it is not missing.
            node = reply.metadata.src_node_id
            pair = next((p for p in waiting if self.courier.node(p[0]) == node), None)
            if pair is not None:
                waiting.pop(pair)
                # Perhaps it lost what it had been sent; next time it gets everything again.
                self.progress.constants.pop(str(pair[0]), None)
            who = "" if pair is None else f"client {pair[0]}: "
            return f"{who}{reply.error.reason}", None
        try:
            update = codec.decode(reply.content, ClientUpdate)
        except CodecError as error:
            return str(error), None
        if reply.metadata.src_node_id != self.courier.node(update.client):
            return f"another node answered for client {update.client}", None
        order = waiting.pop((update.client, update.shard), None)
        if order is None:
            return f"client {update.client} was not asked for this", update
        return self._doubt(order, update), update

    def _doubt(self, order: TrainOrder, update: ClientUpdate) -> str | None:
        """Why an update to an order is not believed, or None."""
        declared = order.budget or self.progress.declared.get(f"{order.client}/{order.shard}")
        if declared is None:
            declared = descriptions.most_records(self.config, self.stream, order.client, order.tasks)
        shapes = self.orders.extra_shapes(self.state, order)
        return self.validator.problem(order, update, declared, shapes, self.orders.doubt)

    def _reject(self, reason: str, client: int | None) -> None:
        self.progress.traffic["rejected"] += 1
        self._event("rejected", client=client, reason=short(reason), **self._where)
