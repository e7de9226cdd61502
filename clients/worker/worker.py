"""Executes orders in one client process, which keeps the backbone, its adapters and tokenised shards.

The backbone is loaded once per process for all clients; nothing of one client stays for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from clients.worker import micro_batches
from clients.worker.answering import Answering
from clients.worker.by_trainer import train_by
from clients.worker.memory import ClientMemory
from clients.worker.planning import Planning
from clients.worker.private import Private
from clients.worker.record_trainings import RecordTrainings
from clients.worker.rules import Local
from clients.worker.shards import BenchmarkShards, OwnShards, ScoredShards, Shards
from clients.worker.terms import Terms
from clients.worker.training import measure, train
from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.config.kinds import Way
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import Record
from fcit.data.styles import in_styles
from fcit.errors import DataError, Refused, TooFew
from fcit.federation.messages import (
    CONSTANT,
    EXTRA,
    FEDOPT,
    KEPT,
    Answers,
    ClientUpdate,
    DescribeOrder,
    Description,
    EvaluateOrder,
    Probe,
    ProbeOrder,
    ScoreOrder,
    SiteScores,
    TrainOrder,
    memory_version,
)
from fcit.federation.thin import Thin, wire_of
from fcit.fedopt.base import FedOpt
from fcit.fedopt.factors import Separate
from fcit.io.cache import Bounded
from fcit.io.trees import Tensors, under
from fcit.methods.base import Method, Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone, versions
from fcit.models.judging import judge_with
from fcit.models.layout import Layout, is_projector, left_out
from fcit.models.steps import computed
from fcit.models.tokens import Tokenised
from fcit.privacy import accountant, tokens
from fcit.privacy.noise import Noise, published

#: Kept per process: records whose tokens have been located, and numbers of identity features.
_LOCATED, _NUMBERS = 100_000, 64_000_000


class Worker:
    """Executes orders for any client of one run.

    Args:
        data: source of the records.
        terms: settings that a deployed site decides itself.
    """

    def __init__(
        self,
        config: RunConfig,
        model: tuple[Backbone, Adapters],
        memory: ClientMemory,
        data: Shards,
        terms: Terms = Terms(),  # noqa: B008  (frozen)
    ) -> None:
        self.config, self.memory, self.data, self.terms = config, memory, data, terms
        self.backbone, self.adapters = model
        sizes = ImageSizes(data.image_root, config.data.pictures)
        self.judge = judge_with(self.backbone.config, self.backbone.encoder, sizes)
        data.judged_by(self.judge)
        self.method: Method = registry.resolve("method", config.method["name"])(config)
        self.fedopt: FedOpt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.thin, self.wire = Thin.of(config, self.method.pooled), wire_of(config, self.method.pooled)
        self.factors: Separate = registry.resolve("factors", config.factors)()
        self.micro = micro_batches.MicroBatches(
            config.training.micro_batch, config.training.batch_size, self.backbone.layers
        )
        self.planning = Planning(config, self.backbone)
        self._encodings = Bounded(_LOCATED, len)
        self._identities = Bounded(_NUMBERS, np.size)
        self._answering = Answering(config, model, self.method, data, self.judge, self._identities)

    # ------------------------------------------------------------------ data

    def _records(self, client: int, tasks: list[int]) -> Sequence[Record]:
        """A client's records of some tasks, as they are learnt (``data.styles``)."""
        records, share = self.data.records(client, tasks), self.config.data.styles
        return in_styles(records, share, self.judge.usable, self.config.seed, client, *tasks) if share else records

    def _encoded(self, client: int, tasks: list[int], records: Sequence[Record]) -> Tokenised:
        """Tokens of the records, which are those of these tasks."""
        key = (client, tuple(tasks), self.judge.stamp(records))
        tokenised: Tokenised = self._encodings.get(key, lambda: self.judge.examples(records))
        return tokenised

    def _identity(self, records: Sequence[Record]) -> np.ndarray:
        """Identity features ``(N, d)`` of the kind the method asks for."""
        return self.backbone.identity.features(self.method.identity, records, self.data.image_root)

    # ------------------------------------------------------------------ orders

    def probe(self, order: ProbeOrder) -> Probe:
        """Names and shapes of the trainable tensors, those that start from the backbone, library versions.

        Raises:
            ConfigError: clients are to keep something and no folder is configured, or a package is missing.
        """
        privacy = self.config.privacy
        keeps = self._remembers or privacy.records or privacy.secure or privacy.tokens
        if keeps or self.factors.keeps or type(self.method).constants is not Method.constants:
            _ = self.memory.root
        if privacy.records and (privacy.record_epsilon is not None or self.terms.records.max_epsilon is not None):
            accountant.require("privacy.record_dp: 'on'")
        if privacy.token_epsilon is not None:
            accountant.require("privacy.token_epsilon")
        shapes = {n: list(shape) for n, shape in self.adapters.shapes.items() if not is_projector(n)}
        start = self.adapters.base_projector() | self.adapters.start(self.config.seed)
        width = self.backbone.identity.width(self.method.identity)
        return Probe(
            shapes=shapes,
            identity_width=width,
            versions=versions(self.backbone.device),
            tensors=start,
            hashes=self.adapters.hashes,
            rank=self.terms.rank,
        )

    def describe(self, order: DescribeOrder) -> Description:
        """Sum and count of the shard's identity features, with ``privacy.token_*`` with noise; no gradients.

        Raises:
            TooFew: the mean of so few instructions would reveal too much about each.
        """
        tasks = self.data.tasks(order.stage, order.tasks)
        records = self._records(order.client, tasks)
        if not records:
            raise DataError(f"client {order.client} holds no records of this shard")
        self.enough(order.client, tasks, "token")
        features = self._identity(records)
        if not self.config.privacy.tokens:
            stats = self.method.describe(features)
            total = stats.total
        else:
            stats = self.method.describe(tokens.clipped(features))
            multiplier, noise = tokens.multiplier(self.config.privacy), Noise(self._secret(order.client))
            if not self.config.privacy.reproducible_noise:
                self.memory.hold(order.client, "token_noise_multiplier", multiplier)
            # Not by the shard's name, which is the server's: the same records would have other noise by each.
            total = tokens.noised(stats.total, multiplier, noise, order.client)
        return Description(client=order.client, shard=order.shard, count=stats.count, tensors={"total": total})

    def _secret(self, client: int) -> bytes:
        """What a client's noise comes from."""
        reproducible = self.config.privacy.reproducible_noise
        return published(self.config.seed) if reproducible else self.memory.secret(client)

    def enough(self, client: int, tasks: list[int], what: str, of: Callable[[int], int] = lambda count: count) -> None:
        """Checked for each task: otherwise a small one could be computed as the difference of two large sums.

        Args:
            of: of how many of a task's records it is made.

        Raises:
            TooFew: they are fewer than the site sends statistics of.
        """
        least = self.terms.min_records
        for task in tasks if least > 1 else ():
            count = of(len(self.data.records(client, [task])))
            if count < least:
                raise TooFew(f"task {task}: a {what} of {count} records is not sent (SITE.yaml min_records: {least})")

    def train(self, order: TrainOrder) -> ClientUpdate:
        """Train the ordered subspace on the shard and return what changed; refused in a run with secure aggregation."""
        if self.config.privacy.secure:
            raise Refused("the order is to send an update unmasked, and the run has privacy.secure_aggregation: on")
        return self.trained(order)

    def trained(self, order: TrainOrder) -> ClientUpdate:
        """What changed in the ordered subspace by training it on the shard."""
        begin = time.perf_counter()
        tasks = self.data.tasks(order.stage, order.tasks)
        if self.method.sends():
            self.enough(order.client, tasks, "statistic", self.method.measured_records)
        sessions, local, remembered = self._sessions(order, tasks)
        whole = {**left_out(order.tensors, self.adapters.shapes), **order.tensors}
        self.adapters.load({n: t for n, t in whole.items() if n in self.adapters.trainable})
        self.backbone.answering.release()
        self.backbone.layers.begin()
        config = self.planning.begin(sessions[0].examples, self.micro)
        if (extra := self.method.extra(order.stage, order.round)) is not None:
            config = config.model_copy(update={"training": config.training.model_copy(update=extra.training)})
        with computed(self.backbone, config.training):
            if order.measure:
                return self._measured(order, sessions[0], begin)
            private = self._private(config, order, tasks, (sessions[0], local.session), remembered)
            if (trainer := config.training.trainer) is not None:
                outcome = train_by(trainer, config, self.method, self.fedopt, order, sessions, local)
            else:
                outcome = train(config, self.method, self.fedopt, order, sessions, self.micro, private, local)
        if private is not None and not config.privacy.reproducible_noise:
            private.end(self._trainings(order.client))
        trained = order.trained
        changed = {n: t for n, t in self.adapters.read().items() if n in trained}
        if self.thin is not None:
            changed = self.thin.sent(order, changed, remembered.setdefault("wire", {}))
        changed |= {f"{EXTRA}{n}": t for n, t in outcome.extra.items()}
        changed |= {f"{FEDOPT}{n}": t for n, t in outcome.fedopt.items()}
        if self._remembers:
            self.memory.save(order.client, memory_version(order.stage, order.round), remembered)
        return self._update(
            order,
            begin,
            examples=outcome.examples,
            steps=outcome.steps,
            loss=outcome.loss if private is None else 0.0,  # a mean over records, without noise
            tensors=changed,
            **self._remarks(config, order, tasks, outcome.overflowed),
        )

    def _remarks(self, config: RunConfig, order: TrainOrder, tasks: list[int], overflowed: int) -> dict[str, Any]:
        """What is sent beside an update; under ``privacy.record_dp`` nothing that depends on the records."""
        if config.privacy.records:
            return {"how": self.terms.how(self.config)}
        decided = self.config.training.checkpointing == "auto"
        how = self.terms.how(config, self.micro, decided, overflowed)
        return {"how": how, "skipped": self.data.skipped(order.client, tasks)}

    def _trainings(self, client: int) -> RecordTrainings:
        return RecordTrainings(self.memory.root / str(client) / "records" / "trainings")

    def _private(
        self, config: RunConfig, order: TrainOrder, tasks: list[int], views: tuple[Session, Session], memory: Any
    ) -> Private | None:
        """The private steps of a training, if it is to have them; what they spend is noted before they are taken.

        Raises:
            Refused: they spend more than SITE.yaml allows, or are not what the order announces.
        """
        privacy = config.privacy
        if not privacy.records:
            return None
        kept = memory, {**views[0].constants, **views[1].constants}
        private = Private(config, order, self._secret(order.client), len(views[0].examples), kept)
        origins = [self.data.origin(task) for task in tasks]
        if not privacy.reproducible_noise:
            private.begin(self._trainings(order.client), origins)
        self.terms.records.spend(origins, private.steps)
        return private

    def _measured(self, order: TrainOrder, session: Session, begin: float) -> ClientUpdate:
        """What the method measures on the shard; the client remembers nothing of it."""
        tensors = {f"{EXTRA}{n}": t for n, t in measure(self.method, order, session).items()}
        return self._update(order, begin, examples=len(session.examples), steps=0, loss=0.0, tensors=tensors)

    def _update(self, order: TrainOrder, begin: float, **values: Any) -> ClientUpdate:
        """The update to an order that was begun at this time."""
        kept = self.memory.size(order.client)
        return ClientUpdate(**order.answered, seconds=time.perf_counter() - begin, kept=kept, **values)

    @property
    def _remembers(self) -> bool:
        return any(part.remembers for part in (self.method, self.fedopt, self.factors, self.thin) if part is not None)

    def _sessions(self, order: TrainOrder, tasks: list[int]) -> tuple[tuple[Session, Session], Local, dict[str, Any]]:
        """The sessions of method, federated optimiser and rule for factors, and the memory that they write into."""
        records = self._records(order.client, tasks)
        examples = self._encoded(order.client, tasks, records)
        if not examples:
            raise DataError(f"client {order.client} holds no records of this shard")
        memory = self.memory.load(order.client, order.memory) if self._remembers else {}
        sent = under(order.tensors, CONSTANT)
        constants = self.memory.constants(order.client, order.constants, sent, order.keep)
        identity = None
        if self.method.needs_identity:
            stamp = self.backbone.identity.stamp(self.method.identity, records, self.data.image_root)
            key = (order.client, tuple(tasks), stamp)
            identity = self._identities.get(key, lambda: self._identity(records))
        last = order.round == self.method.rounds(order.stage) - 1
        # Steps of DP-SGD are private whatever an optimiser does with their gradients, but not with the records.
        of_optimiser = () if self.config.privacy.records else examples
        of_method, of_fedopt, of_rule = (
            Session(
                backbone=self.backbone,
                adapters=self.adapters,
                client=order.client,
                shard=order.shard,
                stage=order.stage,
                round=order.round,
                subspace=order.subspace,
                received=under(order.tensors, prefix),
                brief=order.brief,
                memory=memory.setdefault(owner, {}),
                constants={n: t for n, t in constants.items() if n.startswith(KEPT) == (owner == "factors")},
                examples=seen,
                records=texts,
                identity=identity,
                image_root=self.data.image_root,
                seed=self.config.seed,
                last_round=last,
            )
            for owner, prefix, seen, texts in (
                ("method", EXTRA, examples, records),
                ("fedopt", FEDOPT, of_optimiser, ()),
                ("factors", KEPT, (), ()),
            )
        )
        of_method.examples = self.method.select(of_method)
        if of_fedopt.examples:
            of_fedopt.examples = of_method.examples
        return (of_method, of_fedopt), Local(self.factors, of_rule), memory

    def evaluate(self, order: EvaluateOrder) -> Answers:
        """Answer a stretch of a dataset greedily in batches, routing every question."""
        begin = time.perf_counter()
        knowledge = dict(order.knowledge)
        if self.method.needs_task_at_inference:
            knowledge["task"] = order.task
        stretch = slice(order.first, order.last)
        texts, weights = self._answering.answers(order, knowledge, order.dataset, stretch, self.own(order))
        tensors = {} if weights is None else {"mix": weights}
        return Answers(
            dataset=order.dataset, first=order.first, texts=texts, seconds=time.perf_counter() - begin, tensors=tensors
        )

    def own(self, order: EvaluateOrder | ScoreOrder) -> Callable[[list[Tensors]], list[Tensors]]:
        """What a client makes of the server's subspaces before it answers: with ``factors: fedsa``, its own."""
        if not self.factors.per_client or order.client is None:
            return lambda subspaces: subspaces
        kept = self.memory.load(order.client, order.memory).get("factors", {})
        return lambda subspaces: self.factors.own(order.names, subspaces, kept)

    def score(self, order: ScoreOrder) -> SiteScores:
        """Score this site's own test splits of the tasks begun so far; questions and answers stay here.

        Raises:
            Refused: the data are a benchmark's, whose questions the server scores itself.
        """
        begin = time.perf_counter()
        if not isinstance(self.data, ScoredShards):
            raise Refused("the order is to score, but SITE.yaml has stream: benchmark")
        scores, counts = {}, {}
        for task in map(str, self.data.begun(order.stage)):
            texts, _ = self._answering.answers(order, dict(order.knowledge), task, slice(None), self.own(order))
            scores[task], counts[task] = self.data.score(task, texts), len(texts)
        return SiteScores(client=order.client, scores=scores, counts=counts, seconds=time.perf_counter() - begin)


@lru_cache(maxsize=1)
def _backbone(model: str, pictures: Way, adapter: str, layout: Layout) -> tuple[Backbone, Adapters]:
    backbone = Backbone(configuration.Backbone.model_validate_json(model), pictures)
    return backbone, Adapters(backbone, configuration.Adapter.model_validate_json(adapter), layout)


def loads() -> int:
    """How often this process has loaded a backbone."""
    return _backbone.cache_info().misses


@lru_cache(maxsize=4)
def worker(
    config: str,
    memory: str = "",
    terms: Terms = Terms(),  # noqa: B008  (frozen)
    own: OwnShards | None = None,
) -> Worker:
    """The worker of this process for a run's configuration (YAML); backbones are shared.

    ``memory`` is the folder in which clients remember, or empty; ``own`` a site's own stream.
    """
    parsed = configuration.parse_text(config, "order")
    layout = registry.resolve("method", parsed.method["name"])(parsed).layout
    data: Shards = own.learning(parsed.data.turns) if own else BenchmarkShards(parsed, render=terms.at_site)
    pictures, adapter = parsed.data.pictures, parsed.adapter.model_dump_json()
    model = _backbone(parsed.backbone.model_dump_json(), pictures, adapter, layout)
    return Worker(parsed, model, ClientMemory(Path(memory) if memory else None), data, terms)
