"""Speed figures behind docs/figures.md: ``python -m tests.evidence.speed`` (part of ``make evidence``).

1. A run against a bare loop that does the same local steps and generations and nothing else,
   paired A B A B ..., median of five ratios.
2. Routed evaluation in batches against batch size one.
3. Bytes of a client's update against the whole adapter set.
"""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch

from clients.app import app
from clients.worker.training import learning_rates
from clients.worker.worker import Worker, worker
from fcit import config as configuration
from fcit import seeding
from fcit.data.benchmark import open_benchmark
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.messages import EvaluateOrder, TrainOrder
from fcit.io.files import write_text
from fcit.models.adapters import is_projector
from fcit.models.decoding.batches import Batches
from fcit.runs.folder import RunDir
from server.app import run as serve

RESULT = Path(__file__).parent / "results" / "speed.json"
PAIRS = 5


@contextlib.contextmanager
def recorded():
    """Note what a run asks of its worker, so that the bare loop can do the same."""
    trained, evaluated = [], []
    train, evaluate = Worker.train, Worker.evaluate

    def noting_train(self: Worker, order: TrainOrder):
        trained.append(order)
        return train(self, order)

    def noting_evaluate(self: Worker, order: EvaluateOrder):
        evaluated.append(order)
        return evaluate(self, order)

    Worker.train, Worker.evaluate = noting_train, noting_evaluate  # type: ignore[method-assign]
    try:
        yield trained, evaluated
    finally:
        Worker.train, Worker.evaluate = train, evaluate  # type: ignore[method-assign]


def framework(config: configuration.RunConfig, folder: Path, number: int) -> float:
    path = folder / f"run-{number}"
    path.mkdir()
    write_text(path / "config.yaml", configuration.dump(config))
    write_text(path / "environment.json", "{}")
    begin = time.perf_counter()
    serve(path, InlineGrid(app, config.federation.clients))
    return time.perf_counter() - begin


def bare(w: Worker, trained: list[TrainOrder], evaluated: list[EvaluateOrder]) -> float:
    """The same steps and generations on the same loaded model: no server, messages or checkpoints."""
    begin = time.perf_counter()
    training, backbone, root = w.config.training, w.backbone, w.data.image_root
    for order in trained:
        examples = w._encoded(order.client, order.tasks, w._records(order.client, order.tasks))
        rng = seeding.generator(w.config.seed, "batches", order.stage, order.round, order.client, order.shard)
        indices = rng.permutation(len(examples)).tolist()
        batches = [indices[i : i + training.batch_size] for i in range(0, len(indices), training.batch_size)]
        features = backbone.vision_features(root, [e.images[0] for e in examples])
        w.adapters.load(order.tensors)
        with w.adapters.training() as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=0.0, foreach=True)
            for batch, lr in zip(batches, learning_rates(training, len(batches)), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                loss = backbone.loss([examples[i] for i in batch], features[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
    for order in evaluated:
        w.evaluate(order)
    return time.perf_counter() - begin


def overhead() -> dict[str, float | list[float]]:
    """Wall time of a warm run over the bare loop, pair by pair."""
    config = configuration.parse(
        {"benchmark": "fcit-mini-short", "federation": {"rounds": 3}, "evaluation": {"samples": 100}, "name": "speed"}
    )
    open_benchmark(config).prepare()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        with recorded() as (trained, evaluated):
            framework(config, Path(folder), 0)  # warms the feature cache and shows what is to be done
        w = worker(configuration.dump(config))
        for number in range(1, PAIRS + 1):
            a = framework(config, Path(folder), number)
            b = bare(w, trained, evaluated)
            ratios.append(a / b)
            print(f"pair {number}: run {a:.2f} s, bare loop {b:.2f} s, ratio {a / b:.3f}", flush=True)
        update = next(e for e in RunDir(Path(folder) / "run-1").read_events() if e["event"] == "round")
        state = json.loads((Path(folder) / "run-1" / "results.json").read_text())["state_bytes"]
    order = max(evaluated, key=lambda o: len(o.names))
    return {
        "ratios": [round(r, 4) for r in ratios],
        "median": round(statistics.median(ratios), 4),
        "bytes": bytes_of(w, trained[0], update, state),
        "batching": batching(w, order),
    }


def bytes_of(w: Worker, order: TrainOrder, event: dict, state: int) -> dict[str, float]:
    """One client-round on the wire against sending every subspace."""
    subspace = sum(t.nbytes for n, t in order.tensors.items() if not is_projector(n))
    return {
        "subspace": subspace,
        "projector": sum(t.nbytes for n, t in order.tensors.items() if is_projector(n)),
        "update_measured": event["up"] / len(event["clients"]),
        "whole_adapter_set_4": state,
    }


def batching(w: Worker, order: EvaluateOrder) -> dict[str, float]:
    """Routed evaluation at the configured batch size against batch size one, medians of three."""
    seconds: dict[int, list[float]] = {}
    size = w.config.evaluation.at_once
    original = w.config
    texts = {}
    for _ in range(3):
        for batch in (size, 1):
            evaluation = original.evaluation.model_copy(update={"batch_size": batch})
            w.config = original.model_copy(update={"evaluation": evaluation})
            w.batches = Batches(evaluation, w.backbone.answering)
            begin = time.perf_counter()
            texts[batch] = w.evaluate(order).texts
            seconds.setdefault(batch, []).append(time.perf_counter() - begin)
    w.config = original
    same = sum(a == b for a, b in zip(texts[size], texts[1], strict=True)) / len(texts[1])
    fast, slow = statistics.median(seconds[size]), statistics.median(seconds[1])
    return {
        "batch": size,
        "seconds": round(fast, 3),
        "seconds_batch_1": round(slow, 3),
        "speedup": round(slow / fast, 2),
        "equal_texts": same,
    }


def main() -> None:
    logging.disable(logging.WARNING)
    figures = overhead()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
