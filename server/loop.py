"""The one server loop: for every stage its rounds, then the evaluation; simulation and deployment."""

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
from fcit.data.benchmark import Benchmark
from fcit.errors import CodecError, RunError
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation import codec
from fcit.federation.records import (
    ClientUpdate,
    DescribeOrder,
    Description,
    ProbeOrder,
    TrainOrder,
    memory_version,
)
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.models.layout import is_projector
from fcit.run_dir import RunDir, write_json, writing
from fcit.trackers import Watcher
from server import checkpoint, descriptions, results
from server.aggregation import Spill
from server.checkpoint import Progress
from server.courier import NOBODY, Courier
from server.evaluation import Evaluation
from server.handshake import Handshake
from server.orders import Orders
from server.slots import Slot, slots_of_round
from server.stop import Stop
from server.validation import Validator, short

#: How a client says that it does not have the memory it is asked for: a site's code, or the error's name.
_LOST = re.compile(r"\b(memory-lost|MemoryLost)\b")


class Loop:
    """Runs a configuration on a grid and writes its run folder."""

    def __init__(self, config: RunConfig, benchmark: Benchmark, run: RunDir, grid: Grid, watcher: Watcher) -> None:
        self.config, self.benchmark, self.run, self.watcher = config, benchmark, run, watcher
        self.method: Method = registry.resolve("method", config.method["name"])(config)
        self.fedopt: FedOpt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.orders = Orders(config, benchmark, self.method, self.fedopt, run.id)
        self.state, self.progress = ServerState(), Progress()
        self.validator = Validator.of(config, self.orders.walks)
        self.spill = Spill(run)
        self.stop = Stop()
        clients = 1 if self.method.pooled else config.federation.clients
        self.courier = Courier(grid, config.federation, clients, self.progress.traffic, self._event, self.stop)
        self.handshake = Handshake(self.courier, ProbeOrder(self.orders.text, run.id), run, config.federation)
        self.evaluation = Evaluation(config, benchmark, run, self.orders, self.courier, self._event)

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

    # ------------------------------------------------------------------ the run

    def start(self) -> AccuracyMatrix:
        """Run from the newest checkpoint (or the beginning) to the end; returns the matrix.

        Raises:
            RunError: too few updates in a round, questions without an answer, no room on the disk.
            StopRequested: asked to stop; the checkpoint is written, accepted updates are kept.
        """
        damaged: list[str] = []
        found = checkpoint.load(self.run, damaged.append)
        if found is not None:
            self.state, self.progress = found
            self.state.stage, self.state.round = self.progress.stage, self.progress.round
            self.validator.history = list(self.progress.norms)
        self.run.truncate_events(self.progress.events)
        self.spill.tidy(self.progress.stage, self.progress.round)
        for reason in damaged:
            self._event("checkpoint-damaged", reason=reason)
        with self._timed("start-up"):
            self._probe(found is None)
        if found is None:
            checkpoint.save(self.run, self.state, self.progress)
        stages = self.benchmark.stages
        self._event("start", stages=len(stages), rounds=self._rounds, done=[self.progress.stage, self.progress.round])
        while self.progress.stage < len(stages):
            while self.method.trains and self.progress.round < self._rounds:
                self._round()
                self.stop.check()
            if not self.progress.ended:
                self.method.end_stage(self.state, self.progress.stage)
                self.progress.ended = True
                checkpoint.save(self.run, self.state, self.progress)
            self._evaluate()
            self.stop.check()
        return self._finish()

    @property
    def _rounds(self) -> int:
        return self.config.federation.rounds

    def _probe(self, fresh: bool) -> None:
        """Learn the shapes of the trainable tensors from the backbone the clients have."""
        if not fresh:
            # What the handshake moves was counted when the run began.
            self.courier.traffic = {"up": 0, "down": 0, "orders": 0}
        probe = self.handshake.start()
        self.courier.traffic = self.progress.traffic
        shapes = {name: tuple(shape) for name, shape in probe.shapes.items()}
        projector = {n: t for n, t in probe.tensors.items() if is_projector(n)}
        given = {n: t for n, t in probe.tensors.items() if n not in projector}
        if self.config.adapter.projector == "per_subspace":
            # Every subspace starts from the backbone's projector and trains its own.
            given, shapes, projector = given | projector, shapes | {n: t.shape for n, t in projector.items()}, {}
        self.make = Factory(self.config.seed, shapes, projector, given=given)
        if fresh:
            self.state.shared = dict(projector)
        self._identity_width = probe.identity_width

    # ------------------------------------------------------------------ rounds

    def _round(self) -> None:
        stage, round_ = self.progress.stage, self.progress.round
        self.state.stage, self.state.round = stage, round_
        begin, before = time.perf_counter(), dict(self.progress.traffic)
        sampled = slots_of_round(self.config, self.benchmark, self.method, stage, round_)
        answered = self._gather(sampled)
        # Who could not be described has no subspace and is left out.
        slots = [slot for slot in sampled if slot.pair in self.state.assigned]
        heads = [self.spill.head(slot.pair) for slot in slots]
        with self._timed("aggregation"):
            aggregator = Aggregator(self.fedopt, self.orders.factors, self.orders.robust, self.run.spill / "robust")
            self.method.aggregate(self.state, iter(self.spill), aggregator)
        self._commit({slot.pair: answered[slot.pair] for slot in slots if slot.pair in answered})
        self.validator.close_round()
        self.progress.norms = self.validator.history
        for slot in slots:
            if slot.budget is not None:
                self.progress.offsets[slot.shard] = self.progress.offsets.get(slot.shard, 0) + slot.budget
        self.progress.round += 1
        traffic = {k: self.progress.traffic[k] - before[k] for k in ("up", "down")}
        self.progress.count_round(traffic, [h for h in heads if h])
        self._event(
            "round", stage=stage, round=round_, clients=[s.client for s in slots],
            subspaces=[self.state.assigned[s.pair] for s in slots], tasks=[list(s.tasks) for s in slots],
            examples=[h.examples if h else 0 for h in heads],
            loss={f"{h.client}/{h.shard}": round(h.loss, 5) for h in heads if h},
            client_seconds=[round(h.seconds, 3) if h else None for h in heads],
            exactness=aggregator.exactness, **aggregator.flags,
            seconds=round(time.perf_counter() - begin, 3), **traffic,
        )  # fmt: skip
        with self._timed("checkpoint"):
            checkpoint.save(self.run, self.state, self.progress)
        # Not before the checkpoint holds what they came to: a crash in between would lose them.
        self.spill.clear()

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

    def _accepted(self, update: ClientUpdate) -> None:
        # A client that was never described is held to the size it first reported.
        self.progress.declared.setdefault(f"{update.client}/{update.shard}", update.examples)
        self.watcher.say("client", client=update.client, loss=update.loss)

    def _commit(self, orders: dict[Pair, TrainOrder]) -> None:
        """Note what the accepted clients now know, which subspaces moved, and which tasks they were trained on."""
        progress = self.progress
        version = memory_version(progress.stage, progress.round)
        heads = {pair: head for pair in orders if (head := self.spill.head(pair)) is not None}
        for pair, head in heads.items():
            order = orders[pair]
            if self.method.remembers or self.fedopt.remembers:
                progress.memories[str(pair[0])] = version
            progress.constants[str(pair[0])] = order.constants
            progress.kept[str(pair[0])] = head.kept
            progress.count_tasks(order.tasks, order.subspace, head.examples)
            progress.trained_numbers += sum(t.size for t in order.trained.values())
        for name in sorted({head.subspace for head in heads.values()}):
            self.state.turns[name] = self.state.turns.get(name, 0) + 1

    def _assign(self, slots: list[Slot]) -> None:
        """Describe the pairs that are new and let the method give every pair its subspace."""
        stats: dict[Pair, Stats] = {}
        if self.method.needs_stats:
            stats = self._described({s.pair: s for s in slots if s.pair not in self.state.assigned})
            # A pair that could not be described is left out of this round.
            slots[:] = [s for s in slots if s.pair in stats or s.pair in self.state.assigned]
        left = descriptions.assign(
            self.method, self.state, stats, [s.pair for s in slots], self.make, self.config.federation,
            self.progress.openings,
        )  # fmt: skip
        for pair, reason in left.items():
            self._event("openings", client=pair[0], reason=reason, **self._where)
        slots[:] = [s for s in slots if s.pair not in left]

    def _described(self, new: dict[Pair, Slot]) -> dict[Pair, Stats]:
        """Statistics of new pairs, as far as they are believed."""
        stats: dict[Pair, Stats] = {}
        orders = [
            (self.courier.node(s.client), DescribeOrder(self.orders.text, s.client, s.shard, list(s.tasks)))
            for s in new.values()
        ]
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
        most = descriptions.most_records(self.config, self.benchmark, slot.client, slot.tasks)
        return client, descriptions.problem(answer, self._identity_width, most), answer

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

    def _heed_loss(self, reply: Message, waiting: dict[Pair, TrainOrder]) -> None:
        """Forget what a client was believed to remember, if it says that this is lost: its next order starts afresh."""
        if not reply.has_error() or not _LOST.search(reply.error.reason.partition("\n")[0]):
            return
        node = reply.metadata.src_node_id
        for client in {client for client, _ in waiting if self.courier.node(client) == node}:
            version = self.progress.memories.pop(str(client), "")
            groups = self.progress.constants.pop(str(client), [])
            self._event("memory-lost", client=client, version=version, constants=groups, **self._where)

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
            declared = descriptions.most_records(self.config, self.benchmark, order.client, order.tasks)
        shapes = self.orders.extra_shapes(self.state, order)
        return self.validator.problem(order, update, declared, shapes, self.orders.doubt)

    def _reject(self, reason: str, client: int | None) -> None:
        self.progress.traffic["rejected"] += 1
        self._event("rejected", client=client, reason=short(reason), **self._where)

    @property
    def _where(self) -> dict[str, int]:
        return {"stage": self.progress.stage, "round": self.progress.round}

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self) -> None:
        progress = self.progress
        self.handshake.update()
        with self._timed("evaluation"):
            self.evaluation.stage(self.state, progress)
        # In the benchmark's order, whichever dataset was answered first.
        due = self.orders.due(progress.stage)
        progress.rows.append({name: progress.row[name] for name in due})
        progress.extra_rows.append({name: progress.extra[name] for name in due})
        progress.evaluated, progress.row, progress.extra = [], {}, {}
        self._event("stage", stage=progress.stage, row=progress.rows[-1])
        progress.stage, progress.round, progress.ended = progress.stage + 1, 0, False
        self._write_matrix()
        checkpoint.save(self.run, self.state, progress)

    def _matrix(self) -> AccuracyMatrix:
        final = self.benchmark.evaluation(len(self.benchmark.stages) - 1)
        return AccuracyMatrix(final, self.progress.rows)

    def _write_matrix(self) -> None:
        write_json(self.run.matrix, self._matrix().to_json())

    def _finish(self) -> AccuracyMatrix:
        matrix = self._matrix()
        self.run.clear_spill()
        self._event("end", **matrix.summary())
        # The last file says that the run is finished.
        with writing(self.run.adapters):
            results.write(
                self.run, self.config, self.benchmark.spec.name, self.method, self.state, self.progress, matrix
            )  # fmt: skip
        return matrix
