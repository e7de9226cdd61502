"""The one server loop: for every stage its rounds, then the evaluation; simulation and deployment."""

from __future__ import annotations

import time
from typing import Any

from flwr.serverapp import Grid

from fcit.config import RunConfig, Training
from fcit.data.benchmark import Benchmark
from fcit.data.stream import Stream
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation.records import ClientUpdate, TrainOrder, memory_version
from fcit.fedopt.aggregator import Aggregator
from fcit.io.files import write_json, writing
from fcit.methods.base import Factory, Pair
from fcit.models.layout import is_projector
from fcit.runs.folder import RunDir
from fcit.runs.recorded import data_of
from fcit.runs.trackers import Watcher
from server import checkpoint, results, routing_file
from server.collect import Updates
from server.evaluation import Evaluation
from server.participants import slots_of_round
from server.site_scores import Survey


class Loop(Updates):
    """Runs a configuration on a grid and writes its run folder."""

    def __init__(self, config: RunConfig, stream: Stream, run: RunDir, grid: Grid, watcher: Watcher) -> None:
        super().__init__(config, stream, run, grid, watcher)
        parts = run, self.orders, self.courier, self._event
        self.evaluation: Evaluation | Survey
        if isinstance(stream, Benchmark):  # its questions are here
            self.evaluation = Evaluation(config, stream, *parts)
        else:
            self.evaluation = Survey(config, stream, *parts)

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
        self._tell_changes()
        with self._timed("start-up"):
            self._probe(found is None)
            if found is None:  # else it has been, and training has begun
                self.evaluation.begin()
        if found is None:
            checkpoint.save(self.run, self.state, self.progress)
        stages = self.stream.stage_count
        self._event("start", stages=stages, rounds=self._rounds, done=[self.progress.stage, self.progress.round])
        while self.progress.stage < stages:
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

    def _tell_changes(self) -> None:
        """One event for every change of data that was accepted; again where a crash cut it off."""
        told = sum(event["event"] == "data-changed" for event in self.run.read_events())
        for change in data_of(self.run).get("data_changes", [])[told:]:
            self._event(
                "data-changed",
                stage=self.progress.stage,
                round=self.progress.round,
                reason="; ".join(change["said"]),
                accepted=change["time"],
                changes=change["changes"],
            )

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
        sampled = slots_of_round(self.config, self.stream, self.method, stage, round_)
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
            "round",
            stage=stage,
            round=round_,
            clients=[s.client for s in slots],
            subspaces=[self.state.assigned[s.pair] for s in slots],
            tasks=[list(s.tasks) for s in slots],
            examples=[h.examples if h else 0 for h in heads],
            loss={f"{h.client}/{h.shard}": round(h.loss, 5) for h in heads if h},
            client_seconds=[round(h.seconds, 3) if h else None for h in heads],
            exactness=aggregator.exactness,
            **aggregator.flags,
            **_said(heads, self.config.training),
            seconds=round(time.perf_counter() - begin, 3),
            **traffic,
        )
        with self._timed("checkpoint"):
            checkpoint.save(self.run, self.state, self.progress)
        # Not before the checkpoint holds what they came to: a crash in between would lose them.
        self.spill.clear()

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

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self) -> None:
        progress = self.progress
        self.handshake.update()
        with self._timed("evaluation"):
            self.evaluation.stage(self.state, progress)
        # In the benchmark's order, whichever dataset was answered first.
        due = self.evaluation.due(progress)
        progress.rows.append({name: progress.row[name] for name in due})
        progress.extra_rows.append({name: progress.extra[name] for name in due})
        progress.evaluated, progress.row, progress.extra = [], {}, {}
        self._event("stage", stage=progress.stage, row=progress.rows[-1])
        progress.stage, progress.round, progress.ended = progress.stage + 1, 0, False
        self._write_matrix()
        checkpoint.save(self.run, self.state, progress)

    def _matrix(self) -> AccuracyMatrix:
        return AccuracyMatrix(self.evaluation.columns(self.progress), self.progress.rows)

    def _write_matrix(self) -> None:
        write_json(self.run.matrix, self._matrix().to_json())

    def _finish(self) -> AccuracyMatrix:
        matrix = self._matrix()
        self.run.clear_spill()
        self._event("end", **matrix.summary())
        # The last file says that the run is finished.
        with writing(self.run.adapters):
            routing_file.write(self.run, self.config, self.stream, self.method, self.state, self.progress)
            by_site = self.evaluation.by_site(self.progress)
            results.write(self.run, self.config, self.stream, self.method, self.state, self.progress, matrix, by_site)
        return matrix


def _said(heads: list[ClientUpdate | None], training: Training) -> dict[str, Any]:
    """Where there is something to say: records passed over and how a site trained, in the order of the round's clients;
    clients whose epoch could move nothing."""
    skipped, how = [h.skipped if h else 0 for h in heads], [h.how if h else {} for h in heads]
    idle = [h.client for h in heads if h and not training.moves(h.steps)]
    said = {"skipped": skipped if any(skipped) else [], "how": how if any(how) else [], "idle": idle}
    return {key: value for key, value in said.items() if value}
