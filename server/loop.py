"""The life of a run, from its newest checkpoint to its results: in simulations and deployments the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext

from flwr.serverapp import Grid

from fcit import registry
from fcit.config import RunConfig, async_checks, device_checks
from fcit.data.benchmark import Benchmark
from fcit.data.stream import Stream, labels
from fcit.errors import ConfigError, Unanswered
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation.messages import Probe, ProbeOrder, memory_version
from fcit.federation.thin import wire_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.base import FedOpt
from fcit.fedopt.staleness import RULES
from fcit.io.files import write_json, writing
from fcit.methods.base import Method, Pair, ServerState
from fcit.runs.folder import RunDir
from fcit.runs.trackers import Watcher
from server import checkpoint, collectors, results, routing_file, rules, token_privacy
from server.checkpoint import Progress
from server.clock import Clock
from server.courier import Courier
from server.evaluation import Evaluation
from server.gather import Gathering
from server.handshake import Handshake
from server.journal import Journal, remarks
from server.late import LateSpill
from server.orders import Orders
from server.participants import Slot
from server.per_client import PerClientEvaluation
from server.privacy import Privacy
from server.ranks import Ranks
from server.real_time import RealTime
from server.record_privacy import RecordPrivacy
from server.site_scores import SiteEvaluation
from server.spill import Spill
from server.stop import Stop
from server.sums import Sums
from server.timeline import Done, Timeline
from server.validation import Validator, short


class Loop:
    """Runs a configuration on a grid and writes its run folder.

    Reads the newest checkpoint, if there is one, and makes the parts that the run consists of. State and progress
    are the checkpoint's contents; the parts read them, and change them in place.

    Args:
        stream: the tasks that arrive stage by stage.
        stop: where a request to end the run early is left.

    Raises:
        ConfigError: the method cannot run on these stages, or on tasks that the sites keep to themselves.
        RunError: there are checkpoints and all of them are damaged.
    """

    def __init__(
        self, config: RunConfig, stream: Stream, run: RunDir, grid: Grid, watcher: Watcher, stop: Stop
    ) -> None:
        self.config, self.stream, self.run, self.stop = config, stream, run, stop
        self.method: Method = registry.resolve("method", config.method["name"])(config)
        self.fedopt: FedOpt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.damaged: list[str] = []  # newer checkpoints that cannot be read, and why
        restored = checkpoint.load(run, self.damaged.append)
        self.fresh = restored is None
        self.state, self.progress = restored or (ServerState(), Progress())
        self.state.stage, self.state.round = self.progress.stage, self.progress.round
        self.state.labels = labels(stream)
        self.method.refuse(self.state)
        self.journal = Journal(run, watcher, self.progress, lambda: getattr(grid, "cpu_seconds", 0.0))
        self.records: RecordPrivacy | None = None
        if config.privacy.records:
            self.records = RecordPrivacy(config, stream, self.method, self.progress.records)
            self.progress.records = self.records.ledger
        planned = (lambda slot: 0) if self.records is None else self.records.planned
        self.ranks = Ranks(config, self.progress)
        self.orders = Orders(config, stream, self.method, self.fedopt, run.id, planned, self.ranks)
        self.clock = self._clock()
        settings = self.method.training
        late = (self.orders.thin.late, self.progress.owed) if self.orders.thin else None
        self.validator = Validator.of(config, self.orders.bounded_by_adamw, self.progress.norms, settings, late)
        self.updates = self._updates()
        self.privacy: Privacy | None = None
        if config.privacy.on:
            self.privacy = Privacy(config, stream, self.orders, run, self.progress.privacy, self.method.rounds)
            self.progress.privacy = self.privacy.ledger
        clients = 1 if self.method.pooled else config.federation.clients
        traffic, say = self.progress.traffic, self.journal.round_event
        federation = config.federation.model_copy(update={"wire": wire_of(config, self.method.pooled)})
        self.courier = Courier(grid, federation, clients, traffic, say, stop)
        self.handshake = Handshake(
            self.courier, ProbeOrder(config=self.orders.text, run=run.id), run, config.federation, self.ranks.afforded
        )
        self.evaluation = self._evaluation()

    def _clock(self) -> Clock | RealTime | None:
        """Simulated time, or real time of an asynchronous run without it; none of references that pool all data."""
        simulated, asynchronous = self.config.devices.on, self.config.federation.mode == "async"
        if not (simulated or asynchronous) or self.method.pooled or not self.method.trains:
            return None
        timeline = self.progress.timeline = self.progress.timeline or Timeline()
        return Clock(self.config, self.stream, self.orders, timeline) if simulated else RealTime(timeline)

    def _updates(self) -> Spill | Sums:
        """Where updates wait for their aggregation."""
        if self.config.federation.mode == "async" and self.progress.timeline is not None:
            rule = RULES[self.config.asynchronous.rule](self.config.asynchronous)
            return LateSpill(self.run, rule, self.progress.timeline.flights)
        return Sums() if self.config.privacy.secure else Spill(self.run)

    def _evaluation(self) -> Evaluation | SiteEvaluation:
        parts = self.run, self.orders, self.courier, self.journal.event
        if isinstance(self.stream, Benchmark):  # its questions are here
            kind = PerClientEvaluation if self.orders.factors.per_client else Evaluation
            return kind(self.config, self.stream, *parts, self._count)
        return SiteEvaluation(self.config, self.stream, *parts)

    def start(self) -> AccuracyMatrix:
        """Run to the end; returns the accuracy matrix.

        Raises:
            ConfigError: the clients differ, or are not those that the run began with.
            RunError: too few updates in a round, questions without an answer, no room on the disk.
            StopRequested: asked to stop; the checkpoint is written, accepted updates are kept.
        """
        with closing(self.courier):
            return self._run()

    def _run(self) -> AccuracyMatrix:
        self._return_to_checkpoint()
        with self.journal.timed("start-up"):
            probe = self._probe()
            self._refuse_place()
            collector = collectors.collector(self, probe)
            if self.fresh:  # else this was done before training began
                self.evaluation.begin()
        if self.fresh:
            self._save()
        stages = self.stream.stage_count
        rounds = max(map(self.method.rounds, range(stages)))
        self.journal.event("start", stages=stages, rounds=rounds, done=[self.progress.stage, self.progress.round])
        if self.privacy is not None and self.fresh:
            self.journal.event("privacy", **self.privacy.planned())
        if self.records is not None and self.fresh:
            self.journal.event("record-privacy", **self.records.plan())
        if self.evaluation.begins(self.progress):
            self._answered(self.evaluation.before)
            self.progress.end_untrained(0)
            self.journal.event("untouched", row=self.progress.untrained_rows["0"])
            self._save()
        while self.progress.stage < stages:
            if self.method.measuring(self.progress.stage) and not self.progress.measured:
                self._measure(collector)
            while self.method.trains and self.progress.round < self.method.rounds(self.progress.stage):
                self._round(collector)
                self.stop.check()
            self._end_stage()
            self._evaluate()
            self.stop.check()
        return self._finish()

    # ------------------------------------------------------------------ start

    def _return_to_checkpoint(self) -> None:
        """Remove from the run folder what came after the checkpoint, and report what happened before this start."""
        self.run.truncate_events(self.progress.events)
        if isinstance(self.updates, Spill):
            self.updates.tidy(self.progress.stage, self.progress.round)
        for reason in self.damaged:
            self.journal.event("checkpoint-damaged", reason=reason)
        self.journal.data_changes()

    def _probe(self) -> Probe:
        """Wait for the clients and ask them what their backbone is."""
        # The traffic of a run that goes on has its handshake from when it began.
        with nullcontext() if self.fresh else self.courier.uncounted():
            return self.handshake.start()

    def _refuse_place(self) -> None:
        """Sites of a deployment need no clock that simulates them; a simulation that does not wait needs one.

        Raises:
            ConfigError: it is the other way round.
        """
        check = device_checks.deployed if self.courier.deployed else async_checks.simulated
        problem = check(self.config)
        if problem:
            raise ConfigError(problem)

    def clip(self) -> float | None:
        """The clipping norm of the round at hand; None without differential privacy."""
        return None if self.privacy is None else self.privacy.ledger.clip

    def _count(self) -> None:
        if self.clock is not None:
            self.clock.count()

    def _save(self) -> None:
        self._count()
        checkpoint.save(self.run, self.state, self.progress)

    # ------------------------------------------------------------------ a round

    def _round(self, collector: Gathering) -> None:
        """Collect the updates of a round, aggregate them, write the checkpoint."""
        stage, round_ = self.progress.stage, self.progress.round
        self.state.stage, self.state.round = stage, round_
        begin, before, _ = time.perf_counter(), dict(self.progress.traffic), self.courier.tally.take()
        drawn = self.privacy.drawn(stage, round_) if self.privacy else None
        extra = self.method.extra(stage, round_) is not None
        gathered = collector.round(drawn, extra)
        # A shard that got no subspace, or has but that of an earlier stage, is left out.
        slots = [slot for slot in gathered.slots if self.method.settled(self.state, slot.pair)]
        heads = [self.updates.head(slot.pair) for slot in slots]
        aggregator = self._aggregate(slots)
        self._commit(
            slots, {slot.pair: gathered.accepted[slot.pair] for slot in slots if slot.pair in gathered.accepted}
        )
        traffic = {way: self.progress.traffic[way] - before[way] for way in ("up", "down")}
        self.progress.count_round(traffic, [h for h in heads if h])
        self.journal.event(
            "round",
            stage=stage,
            round=round_,
            clients=[s.client for s in slots],
            subspaces=[self.state.assigned[s.pair] for s in slots],
            tasks=[list(s.tasks) for s in slots],
            examples=[h.examples if h else 0 for h in heads],
            loss={f"{h.client}/{h.shard}": None if self.records else round(h.loss, 5) for h in heads if h},
            client_seconds=[round(h.seconds, 3) if h else None for h in heads],
            **({"extra": True} if extra else {}),
            exactness=aggregator.exactness,
            **aggregator.flags,
            **(self.updates.flags if isinstance(self.updates, Sums) else {}),
            **remarks(heads, self.config.training),
            **self.ranks.count(heads, self.courier.tally.take()),
            **gathered.remarks(self.clock),
            **({"privacy": self.privacy.so_far()} if self.privacy else {}),
            **({"record_privacy": self.records.so_far()} if self.records else {}),
            seconds=round(time.perf_counter() - begin, 3),
            **traffic,
        )
        with self.journal.timed("checkpoint"):
            self._save()
        # After the checkpoint that holds their aggregate: a crash in between would lose them.
        self.updates.clear()

    def _measure(self, collector: Gathering) -> None:
        """Let the clients of the stage's first round measure what the method wants to know before they train."""
        self.state.stage, self.state.round = self.progress.stage, 0
        begin, before = time.perf_counter(), dict(self.progress.traffic)
        accepted = collector.round(measure=True).accepted
        heads = [head for pair in sorted(accepted) if (head := self.updates.head(pair)) is not None]
        self.method.absorb(self.state, iter(self.updates))
        self.progress.constants |= {str(order.client): order.constants for order in accepted.values()}
        self.progress.measured = True
        traffic = {way: self.progress.traffic[way] - before[way] for way in ("up", "down")}
        self.progress.count_work(traffic, heads)
        seconds = {"seconds": round(time.perf_counter() - begin, 3)}
        clients = {h.client: round(h.seconds, 3) for h in heads}
        values = {"clients": list(clients), "client_seconds": list(clients.values()), **seconds, **traffic}
        self.journal.round_event("measured", **values)
        self._save()
        self.updates.clear()  # after the checkpoint, as in a round

    def _aggregate(self, slots: list[Slot]) -> Aggregator:
        """Let the method fold the accepted updates into the state.

        Args:
            slots: the round's participations.
        """
        with self.journal.timed("aggregation"):
            rules, summed = (self.orders.factors, self.orders.robust), isinstance(self.updates, Sums)
            scratch, kept = self.run.spill / "robust", self.state.factors
            aggregator = Aggregator(self.fedopt, *rules, scratch, summed, kept)
            if self.privacy is None:
                self.method.aggregate(self.state, self.ranks.pruned(self.updates, self.state.subspaces), aggregator)
            else:
                self.privacy.aggregate(self.method, self.state, slots, self.updates, aggregator)
        return aggregator

    def _commit(self, slots: list[Slot], orders: dict[Pair, Done]) -> None:
        """The round is over: note what its clients now remember, which subspaces moved, what they were trained on.

        Args:
            slots: the round's participations.
            orders: those whose updates were accepted.
        """
        progress = self.progress
        heads = {pair: head for pair in orders if (head := self.updates.head(pair)) is not None}
        trained = set(progress.contributed)
        for pair, head in heads.items():
            order = orders[pair]
            if self.orders.remembered:
                progress.memories[str(pair[0])] = memory_version(order.stage, order.round)
            progress.constants[str(pair[0])] = order.constants
            progress.kept[str(pair[0])] = head.kept
            if self.method.extra(order.stage, order.round) is None:
                progress.count_tasks(order.tasks, order.subspace, head.examples)
                trained.add(f"{order.client}/{order.shard}")
            progress.trained_numbers += order.numbers + self.orders.at_home(self.state, order.subspace, pair[0])
        if self.config.evaluation.personal is not None:
            progress.contributed = sorted(trained)
        moved = {head.subspace for head in heads.values()}
        if self.privacy is not None:  # with noise if without updates
            moved = set(self.privacy.moved(self.method, self.state, slots))
        if self.records is not None:
            self.records.count(slots, heads, progress.declared)
        for name in sorted(moved):
            self.state.turns[name] = self.state.turns.get(name, 0) + 1
        self.validator.close_round()
        progress.norms = self.validator.history
        for slot in slots:
            if slot.budget is not None:
                progress.offsets[slot.shard] = progress.offsets.get(slot.shard, 0) + slot.budget
        progress.round += 1
        if self.clock is not None:
            self.clock.end_round()

    # ------------------------------------------------------------------ after the rounds of a stage

    def _end_stage(self) -> None:
        """Tell the method that the stage is over, once."""
        if not self.progress.ended:
            rules.end_stage(self.orders.factors, self.state, self.journal)
            self.method.end_stage(self.state, self.progress.stage)
            if self.privacy is not None:
                self.privacy.end_stage()
            if self.records is not None:
                self.records.end_stage()
            if self.clock is not None:
                self.clock.end_stage()
            self.progress.ended = True
            self._save()

    def _evaluate(self) -> None:
        """Add the stage's row to the accuracy matrix and go on to the next stage."""
        progress = self.progress
        self._answered(self.evaluation.stage)
        rows = progress.end_evaluation(self.evaluation.due(progress))
        self.journal.event("stage", stage=progress.stage, **rows)
        progress.stage, progress.round = progress.stage + 1, 0
        progress.measured = progress.ended = False
        write_json(self.run.matrix, self._matrix().to_json())
        self._save()

    def _answered(self, ask: Callable[[ServerState, Progress], None]) -> None:
        """Have the questions due answered; again if that fails, as ``federation.on_too_few`` says.

        Args:
            ask: of :attr:`evaluation`.

        Raises:
            Unanswered: no client can answer, and there is no further attempt.
        """
        federation, attempt = self.config.federation, 0
        while True:
            self.handshake.update()
            try:
                with self.journal.timed("evaluation"):
                    ask(self.state, self.progress)
                return
            except Unanswered as error:
                if not self.courier.deployed or not federation.again(attempt):
                    raise
                self.journal.event("evaluate-again", stage=self.progress.stage, reason=short(str(error)))
            attempt += 1
            if federation.on_too_few == "wait":
                self.stop.pause(federation.pause)

    # ------------------------------------------------------------------ the end

    def _matrix(self) -> AccuracyMatrix:
        return self.progress.matrix(self.evaluation.columns(self.progress))

    def _finish(self) -> AccuracyMatrix:
        """Write adapters and results; the last file says that the run is finished."""
        matrix = self._matrix()
        self.run.clear_spill()
        if self.privacy is not None:
            self.privacy.forget_secret()
        spent = {"privacy": self.privacy.spent()} if self.privacy else {}
        spent |= {"record_privacy": self.records.spent()} if self.records else {}
        if self.config.privacy.tokens:
            spent["token_privacy"] = token_privacy.spent(self.config, self.progress.described)
        self.journal.event("end", **matrix.summary())
        with writing(self.run.adapters):
            if not self.orders.factors.per_client:  # else nothing here answers questions
                routing_file.write(self.run, self.config, self.stream, self.method, self.state, self.progress)
            by_site = self.evaluation.by_site(self.progress)
            parts = self.config, self.stream, self.method, self.state, self.progress
            results.write(self.run, *parts, matrix, by_site, spent)
        return matrix
