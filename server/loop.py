"""The one server loop: for every stage its rounds, then the evaluation; simulation and deployment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.errors import CodecError, ConfigError, RunError, StopRequested
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation import codec
from fcit.federation.records import (
    Answers,
    ClientUpdate,
    DescribeOrder,
    Description,
    Probe,
    ProbeOrder,
    TrainOrder,
    memory_version,
)
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.models.layout import is_projector
from fcit.run_dir import RunDir, write_json
from fcit.trackers import Watcher
from server import checkpoint, results
from server.aggregation import Spill
from server.checkpoint import Progress
from server.courier import Courier
from server.orders import Orders
from server.scoring import Parts, score
from server.slots import Slot, slots_of_round
from server.validation import Validator


class Loop:
    """Runs a configuration on a grid and writes its run folder."""

    def __init__(self, config: RunConfig, benchmark: Benchmark, run: RunDir, grid: Grid, watcher: Watcher) -> None:
        self.config, self.benchmark, self.run, self.watcher = config, benchmark, run, watcher
        self.method: Method = registry.resolve("method", config.method["name"])(config)
        self.fedopt: FedOpt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.orders = Orders(config, benchmark, self.method, self.fedopt)
        self.state, self.progress = ServerState(), Progress()
        self.validator = Validator(config.training.batch_size, config.training.epochs)
        self.spill = Spill(run)
        self.stopping: StopRequested | None = None
        clients = 1 if self.method.pooled else config.federation.clients
        self.courier = Courier(grid, config.federation, clients, self.progress.traffic)

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
            RunError: too few updates in a round after all retries.
            StopRequested: asked to stop; the checkpoint is written.
        """
        with self._timed("start-up"):
            self._probe()
        found = checkpoint.load(self.run)
        if found is None:
            checkpoint.save(self.run, self.state, self.progress)
        else:
            self.state, self.progress = found
            self.state.stage, self.state.round = self.progress.stage, self.progress.round
            self.courier.traffic = self.progress.traffic
            self.run.truncate_events(self.progress.events)
            self.validator.history = list(self.progress.norms)
        stages = self.benchmark.stages
        self._event("start", stages=len(stages), rounds=self._rounds, done=[self.progress.stage, self.progress.round])
        while self.progress.stage < len(stages):
            while self.method.trains and self.progress.round < self._rounds:
                self._round()
                self._safe_point()
            if not self.progress.ended:
                self.method.end_stage(self.state, self.progress.stage)
                self.progress.ended = True
                checkpoint.save(self.run, self.state, self.progress)
            self._evaluate()
            self._safe_point()
        return self._finish()

    @property
    def _rounds(self) -> int:
        return self.config.federation.rounds

    def _probe(self) -> None:
        """Learn the shapes of the trainable tensors from the backbone the clients have."""
        probe = self.courier.ask("query.probe", self.courier.nodes[0], ProbeOrder(self.orders.text), Probe)
        shapes = {name: tuple(shape) for name, shape in probe.shapes.items()}
        projector = {n: t for n, t in probe.tensors.items() if is_projector(n)}
        given = {n: t for n, t in probe.tensors.items() if n not in projector}
        if self.config.adapter.projector == "per_subspace":
            # Every subspace starts from the backbone's projector and trains its own.
            given, shapes, projector = given | projector, shapes | {n: t.shape for n, t in projector.items()}, {}
        self.make = Factory(self.config.seed, shapes, projector, given=given)
        self.state.shared = dict(projector)
        self._identity_width = probe.identity_width
        environment = self.run.path / "environment.json"
        known = json.loads(environment.read_text(encoding="utf-8"))
        before = known.get("backend")
        if before is None:
            write_json(environment, {**known, "backend": probe.versions})
        elif before != probe.versions:
            changed = [f"{k}: {before.get(k)} then, {v} now" for k, v in probe.versions.items() if before.get(k) != v]
            raise ConfigError(f"{self.run.path}: cannot resume to the same bits, other versions ({'; '.join(changed)})")

    def _safe_point(self) -> None:
        if self.stopping is not None:
            raise self.stopping

    # ------------------------------------------------------------------ rounds

    def _round(self) -> None:
        stage, round_ = self.progress.stage, self.progress.round
        self.state.stage, self.state.round = stage, round_
        begin, before = time.perf_counter(), dict(self.progress.traffic)
        slots = slots_of_round(self.config, self.benchmark, self.method, stage, round_)
        needed = min(self.config.federation.min_updates, len(slots))
        with self._timed("describe"):
            self._assign(slots)
        for attempt in range(self.config.federation.retries + 1):
            # Made anew for a repetition: a client that has lost what it was sent earlier gets it again.
            orders = {slot.pair: self.orders.train(self.state, self.progress, slot) for slot in slots}
            losses = self._collect(orders, attempt)
            if len(self.spill) >= needed:
                break
            self._event("retry", stage=stage, round=round_, accepted=len(self.spill), needed=needed)
        else:
            raise RunError(
                f"stage {stage + 1}, round {round_ + 1}: {len(self.spill)} usable updates of {len(orders)}, "
                f"{needed} needed (federation.min_updates), {attempt + 1} attempts; reasons are in "
                f"{self.run.events}; `fcit resume {self.run.path}` tries again"
            )
        heads = [self.spill.head(slot.pair) for slot in slots]
        with self._timed("aggregation"):
            aggregator = Aggregator(self.fedopt, self.orders.factors)
            self.method.aggregate(self.state, iter(self.spill), aggregator)
        self._commit(orders)
        self.spill.clear()
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
            examples=[h.examples if h else 0 for h in heads], loss=losses,
            client_seconds=[round(h.seconds, 3) if h else None for h in heads],
            exactness=aggregator.exactness, seconds=round(time.perf_counter() - begin, 3), **traffic,
        )  # fmt: skip
        with self._timed("checkpoint"):
            checkpoint.save(self.run, self.state, self.progress)

    def _commit(self, orders: dict[Pair, TrainOrder]) -> None:
        """Note what the accepted clients now know, which subspaces moved, and which tasks they were trained on."""
        progress = self.progress
        version = memory_version(progress.stage, progress.round)
        for pair, order in orders.items():
            head = self.spill.head(pair)
            if head is None:
                continue
            if self.method.remembers or self.fedopt.remembers:
                progress.memories[str(pair[0])] = version
            progress.constants[str(pair[0])] = order.constants
            progress.kept[str(pair[0])] = head.kept
            progress.count_tasks(order.tasks, order.subspace, head.examples)
            progress.trained_numbers += sum(t.size for t in order.trained.values())
        for name in sorted({order.subspace for pair, order in orders.items() if self.spill.head(pair)}):
            self.state.turns[name] = self.state.turns.get(name, 0) + 1

    def _assign(self, slots: list[Slot]) -> None:
        """Describe the pairs that are new and let the method give every pair its subspace."""
        stats: dict[Pair, Stats] = {}
        if self.method.needs_stats:
            new = {s.pair: s for s in slots if s.pair not in self.state.assigned}
            orders = [
                (self.courier.node(s.client), DescribeOrder(self.orders.text, s.client, s.shard, list(s.tasks)))
                for s in new.values()
            ]
            for reply in self.courier.send("query.describe", orders, "describe"):
                if reply.has_error():
                    self._event("describe-failed", reason=reply.error.reason)
                    continue
                try:
                    answer = codec.decode(reply.content, Description)
                except CodecError as error:
                    self._event("describe-failed", reason=str(error))
                    continue
                pair = (answer.client, answer.shard)
                problem = self._doubt(reply, answer) if pair in new else "was not asked"
                if problem:
                    self._event("describe-failed", client=answer.client, reason=problem)
                    continue
                stats[pair] = Stats(answer.tensors["total"], answer.count)
                self.progress.declared[f"{pair[0]}/{pair[1]}"] = answer.count
            # A pair that could not be described is left out of this round.
            slots[:] = [s for s in slots if s.pair in stats or s.pair in self.state.assigned]
        self.method.assign(self.state, [s.pair for s in slots], stats, self.make)

    def _doubt(self, reply: Message, answer: Description) -> str | None:
        """Why a description is not believed, or None."""
        if reply.metadata.src_node_id != self.courier.node(answer.client):
            return f"another node answered for client {answer.client}"
        total = answer.tensors.get("total")
        if set(answer.tensors) != {"total"} or total is None or total.shape != (self._identity_width,):
            return f"expected one vector of {self._identity_width} numbers"
        if total.dtype != np.float64 or not np.isfinite(total).all() or answer.count < 1:
            return "the feature sum or the count makes no sense"
        return None

    def _collect(self, orders: dict[Pair, TrainOrder], attempt: int) -> dict[str, float]:
        """Send orders, validate what comes back, spill what is accepted."""
        self.spill.clear()
        self.validator.drop_round()
        losses: dict[str, float] = {}
        waiting = dict(orders)
        messages = [(self.courier.node(order.client), order) for order in orders.values()]
        with self._timed("training"):
            group = f"{self.progress.stage}.{self.progress.round}.{attempt}"
            for reply in self.courier.send("train", messages, group):
                problem, update = self._read_update(reply, waiting)
                if problem is not None or update is None:
                    self._reject(problem or "empty", update)
                    continue
                self.spill.put(update)
                # A client that was never described is held to the size it first reported.
                self.progress.declared.setdefault(f"{update.client}/{update.shard}", update.examples)
                losses[f"{update.client}/{update.shard}"] = round(update.loss, 5)
                self.watcher.say("client", client=update.client, loss=update.loss)
        for pair in waiting:
            self._event("missing", client=pair[0], stage=self.progress.stage, round=self.progress.round)
        return losses

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
        declared = order.budget or self.progress.declared.get(f"{update.client}/{update.shard}")
        problem = self.validator.problem(order, update, declared, self.orders.extra_shapes(self.state, order))
        return problem or self.orders.doubt(update), update

    def _reject(self, reason: str, update: ClientUpdate | None) -> None:
        self.progress.traffic["rejected"] += 1
        where = {"stage": self.progress.stage, "round": self.progress.round}
        client = update.client if update is not None else None
        self._event("rejected", client=client, reason=reason, **where)

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self) -> None:
        progress = self.progress
        due = self.orders.due(progress.stage)
        left = [name for name in due if name not in progress.evaluated]
        with self._timed("evaluation"):
            for answers in self._answers(left):
                name = answers.dataset
                scored = score(
                    self.benchmark, answers, self.run.predictions / f"stage-{progress.stage + 1}" / f"{name}.jsonl"
                )
                progress.evaluated.append(name)
                progress.samples += len(answers.texts)
                progress.answer_seconds = round(progress.answer_seconds + answers.seconds, 4)
                progress.row[name], progress.extra[name] = scored.score, scored.also
                self._event("scored", stage=progress.stage, dataset=name, score=scored.score, mix=scored.mix,
                            seconds=round(answers.seconds, 3))  # fmt: skip
                checkpoint.save(self.run, self.state, progress)
                self._safe_point()
        # In the benchmark's order, whichever dataset was answered first.
        progress.rows.append({name: progress.row[name] for name in due})
        progress.extra_rows.append({name: progress.extra[name] for name in due})
        progress.evaluated, progress.row, progress.extra = [], {}, {}
        self._event("stage", stage=progress.stage, row=progress.rows[-1])
        progress.stage, progress.round, progress.ended = progress.stage + 1, 0, False
        self._write_matrix()
        checkpoint.save(self.run, self.state, progress)

    def _answers(self, due: list[str]) -> Iterator[Answers]:
        """Answers of whole datasets; stretches of them are worked on wherever there is room."""
        orders = list(self.orders.evaluate(self.state, self.progress, due, self.courier.nodes))
        parts = {name: Parts(name, sum(order.dataset == name for _, order in orders)) for name in due}
        for reply in self.courier.send("evaluate", orders, f"{self.progress.stage}.evaluate"):
            if reply.has_error():
                raise RunError(f"evaluation: {reply.error.reason}\n`fcit resume {self.run.path}` tries it again")
            answer = codec.decode(reply.content, Answers)
            whole = parts[answer.dataset].add(answer) if answer.dataset in parts else None
            if whole is not None:
                del parts[answer.dataset]
                yield whole
        if parts:
            raise RunError(
                f"evaluation of {', '.join(parts)}: no answer within {self.config.federation.timeout:.0f} s "
                f"(federation.timeout); `fcit resume {self.run.path}` tries again"
            )

    def _matrix(self) -> AccuracyMatrix:
        final = self.benchmark.evaluation(len(self.benchmark.stages) - 1)
        return AccuracyMatrix(final, self.progress.rows)

    def _write_matrix(self) -> None:
        write_json(self.run.matrix, self._matrix().to_json())

    def _finish(self) -> AccuracyMatrix:
        matrix = self._matrix()
        results.write(
            self.run, self.config, self.benchmark.spec.name, self.method, self.state, self.progress, matrix
        )  # fmt: skip
        self.run.clear_spill()
        self._event("end", **matrix.summary())
        return matrix
