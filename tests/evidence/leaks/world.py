"""One client after another in this process: the real worker on chosen records, and the real server's aggregation."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from clients.worker.memory import ClientMemory
from clients.worker.worker import Worker
from fcit import config as configuration
from fcit import registry, seeding
from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.data.records import Record, TestRecord
from fcit.data.verdict import Judge
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, ProbeOrder, TrainOrder
from fcit.fedopt.aggregator import Aggregator
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, ServerState, Update
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.runs.folder import RunDir
from server.participants import Slot
from server.privacy import Privacy
from tests.helpers.toy import by_factors

ROOT = Path(__file__).parent.parent.parent.parent
SHARD = "shard"
NOT_RUN = "not run yet"  # in tables
BASE = {
    "name": "leaks",
    "benchmark": "fcit-mini-short",
    "method": "finetune",
    "adapter": {"dropout": 0},
    "backbone": {"threads": 1},
}


class Given:
    """Shards that are handed over: every set of records is a task of its own."""

    def __init__(self, image_root: Path) -> None:
        self.image_root = image_root
        self._sets: dict[int, Sequence[Record]] = {}
        self._numbers = itertools.count()

    def add(self, records: Sequence[Record]) -> int:
        """The number of a new set of records."""
        number = next(self._numbers)
        self._sets = {number: records}  # the one before has been trained on
        return number

    def tasks(self, stage: int, ordered: list[int]) -> list[int]:
        """As ordered."""
        return ordered

    def records(self, client: int, tasks: list[int]) -> Sequence[Record]:
        """The set of records that the order names, whoever the client is."""
        return self._sets[tasks[0]]

    def origin(self, task: int) -> str:
        """A name of its own for every set."""
        return f"set {task}"

    def skipped(self, client: int, tasks: list[int]) -> int:
        """None of them."""
        return 0

    def judged_by(self, judge: Judge) -> None:
        """The records are the benchmark's own, which the model can use."""

    def test(self, dataset: str) -> Sequence[TestRecord]:
        """There are no questions to answer."""
        return []

    def question_images(self, dataset: str) -> Path:
        """As of the records."""
        return self.image_root

    def max_new_tokens(self, dataset: str) -> int | None:
        """There are no questions to answer."""
        return None


@cache
def _model(backbone: str, pictures: Any, adapter: str) -> tuple[Backbone, Adapters]:
    loaded = Backbone(configuration.Backbone.model_validate_json(backbone), pictures)
    return loaded, Adapters(loaded, configuration.Adapter.model_validate_json(adapter))


class World:
    """A configuration with its worker, its records and the tensors that a run begins with.

    Args:
        settings: ``key=value`` on top of :data:`BASE`, as on the command line.
    """

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.config: RunConfig = configuration.resolve(BASE, ROOT, "leaks", list(settings))
        self._text = configuration.dump(self.config)
        benchmark = open_benchmark(self.config)
        benchmark.prepare()
        self.benchmark, self.data = benchmark, Given(benchmark.image_root)
        model = _model(
            self.config.backbone.model_dump_json(), self.config.data.pictures, self.config.adapter.model_dump_json()
        )
        self._memory = tempfile.TemporaryDirectory()  # of the clients: secrets of ``privacy.record_dp``
        self.worker = Worker(self.config, model, ClientMemory(Path(self._memory.name)), self.data)
        probe = self.worker.probe(ProbeOrder(config=self._text))
        self.shared = {n: t for n, t in probe.tensors.items() if is_projector(n)}
        make = Factory(self.config.seed, {n: tuple(s) for n, s in probe.shapes.items()})
        self.first: Tensors = make("0") | self.shared

    def records(self, task: int, count: int, seed: int = 0) -> list[Record]:
        """So many of a task's training records, in an order that belongs to the seed.

        Raises:
            ValueError: there are not so many.
        """
        pooled = self.benchmark.pooled(task)
        if count > len(pooled):
            raise ValueError(f"task {task} has {len(pooled)} records, {count} are asked for")
        rows = seeding.generator(seed, "leaks", task).permutation(len(pooled))[:count]
        return [pooled[int(row)] for row in rows]

    # ------------------------------------------------------------------ a client

    def train(
        self, start: Tensors, records: Sequence[Record], client: int = 0, round_: int = 0, participations: int = 1
    ) -> ClientUpdate:
        """One client's update, as the server reads it off the wire.

        Args:
            participations: how often the client trains in all, over which ``privacy.record_epsilon`` is spread.
        """
        order = TrainOrder(
            config=self._text,
            stage=0,
            round=round_,
            client=client,
            shard=SHARD,
            tasks=[self.data.add(records)],
            subspace="0",
            tensors=start,
            participations=participations,
        )
        content = codec.encode(self.worker.train(order), self.config.federation.wire)
        return codec.decode(content, ClientUpdate, writable=True, reply=True)

    def losses(self, tensors: Tensors, records: Sequence[Record], at_once: int = 64) -> np.ndarray:
        """Cross-entropy of each record's answers, summed over their tokens ``(N,)``."""
        worker, found = self.worker, []
        examples = worker.judge.examples(records)
        worker.adapters.load({n: t for n, t in tensors.items() if n in worker.adapters.trainable})
        with worker.adapters.training(), worker.adapters.resting(), torch.no_grad():
            for first in range(0, len(examples), at_once):
                batch = [examples[i] for i in range(first, min(first + at_once, len(examples)))]
                images = [image for example in batch for image in example.images]
                features = worker.backbone.vision_features(self.data.image_root, images)
                logits, targets = worker.backbone.answer_logits(batch, features)
                tokens = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()
                ends = np.cumsum([example.learnt for example in batch])
                found += [part.sum() for part in np.split(tokens, ends[:-1])]
        return np.array(found, dtype=np.float64)

    # ------------------------------------------------------------------ a federation

    def federate(self, clients: Sequence[Sequence[Record] | None], start: Tensors | None = None) -> Tensors:
        """The tensors after ``federation.rounds`` rounds in which every client is asked; None: it never answers.

        Raises:
            ValueError: not as many clients as the configuration has.
        """
        federation = self.config.federation
        if not len(clients) == federation.clients == federation.clients_per_round:
            raise ValueError(f"{len(clients)} clients for a configuration of {federation.clients}")
        start = start or self.first
        state = ServerState(
            subspaces={"0": {n: t for n, t in start.items() if n not in self.shared}},
            shared={n: start[n] for n in self.shared},
            assigned={(client, SHARD): "0" for client in range(len(clients))},
        )
        slots = [Slot(client, SHARD, (0,)) for client in range(len(clients))]
        factors = registry.resolve("factors", self.config.factors)()
        with tempfile.TemporaryDirectory() as folder:
            privacy = self._privacy(factors, Path(folder)) if self.config.privacy.on else None
            for state.round in range(federation.rounds):
                tensors, updates = {**state.subspaces["0"], **state.shared}, list[Update]()
                for client, records in enumerate(clients):
                    if records:
                        reply = self.train(tensors, records, client, state.round, federation.rounds)
                        updates.append(Update(client, "0", reply.examples, reply.tensors))
                aggregator = Aggregator(self.worker.fedopt, factors)
                if privacy is None:
                    self.worker.method.aggregate(state, iter(updates), aggregator)
                else:
                    privacy.aggregate(self.worker.method, state, slots, iter(updates), aggregator)
                state.turns["0"] = state.turns.get("0", 0) + 1
        return {**state.subspaces["0"], **state.shared}

    def _privacy(self, factors: Any, folder: Path) -> Privacy:
        """The private part of the server, with a secret of its own for each federation."""
        stream: Any = SimpleNamespace(stage_count=1)
        return Privacy(self.config, stream, by_factors(factors), RunDir(folder), None)


def keep(file: Path, name: str, value: Any) -> None:
    """Write one entry of a file of results, beside those that are there."""
    finished = read(file) | {name: value}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)


def read(file: Path) -> dict[str, Any]:
    """What is finished, by name."""
    finished: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return finished
