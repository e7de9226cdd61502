"""What one update costs the server, at the size of LLaVA-1.5-7B: 11.6 million numbers of LoRA, 21 million of projector.

    python -m tests.perf.update [UPDATES]

Prints seconds of each part for one update (the mean of several), by the clock and of CPU, and a hash of the aggregate.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fcit.config import parse
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.io.trees import Tensors
from fcit.runs.folder import RunDir
from server.spill import Spill
from server.validation import Validator

LAYERS, HIDDEN, INNER, RANK, SEEN = 32, 4096, 11008, 8, 1024


def start(random: np.random.Generator) -> Tensors:
    """Tensors of a subspace and the projector, under the names that peft gives them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for module, (out, into) in {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}.items():
            name = f"base_model.model.model.language_model.layers.{layer}.mlp.{module}_proj"
            shapes |= {f"{name}.lora_A.weight": (RANK, into), f"{name}.lora_B.weight": (out, RANK)}
    for linear, into in ((1, SEEN), (2, HIDDEN)):
        name = f"base_model.model.model.multi_modal_projector.linear_{linear}"
        shapes |= {f"{name}.weight": (HIDDEN, into), f"{name}.bias": (HIDDEN,)}
    return {name: random.normal(0, 0.01, shape).astype(np.float32) for name, shape in shapes.items()}


def order_of(client: int, tensors: Tensors) -> TrainOrder:
    """An order to train all of them."""
    return TrainOrder(
        config="",
        run="",
        stage=0,
        round=0,
        client=client,
        shard="0",
        subspace="0",
        tasks=[0],
        budget=None,
        offset=0,
        frozen=[],
        memory="",
        constants=[],
        tensors=tensors,
    )


def update_of(order: TrainOrder, random: np.random.Generator) -> ClientUpdate:
    """An honest update to it: 100 records, seven steps."""
    moved = {n: t + random.normal(0, 1e-4, t.shape).astype(np.float32) for n, t in order.tensors.items()}
    return ClientUpdate(
        stage=0,
        round=0,
        client=order.client,
        shard="0",
        subspace="0",
        examples=100,
        steps=7,
        loss=1.0,
        seconds=1.0,
        tensors=moved,
        kept=0,
        how={},
        skipped=0,
    )


class Costs:
    """Seconds of this process by part: by the clock, and of CPU."""

    def __init__(self) -> None:
        self.seconds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the body under a name."""
        before = np.array([time.perf_counter(), time.process_time()])
        yield
        self.seconds[part] += np.array([time.perf_counter(), time.process_time()]) - before


def measure(updates: int, folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Costs of each part for one update, and a hash of the aggregate."""
    import torch  # noqa: F401  (not counted: once a process)

    random, costs = np.random.default_rng(0), Costs()
    old = start(random)
    config = parse({"name": "update", "benchmark": "fcit-mini-short"})
    run = RunDir.create(folder, "update", "", {})
    spill, validator = Spill(run), Validator.of(config, True, [])
    for client in range(updates):
        order = order_of(client, old)
        sent = codec.encode(update_of(order, random))
        with costs.of("decode"):
            update = codec.decode(sent, ClientUpdate)
        with costs.of("validate"):
            reason = validator.reject_reason(order, update, 100)
        assert reason is None, reason
        with costs.of("keep"):
            spill.put(order, update)
        del sent, update
    with costs.of("aggregate"):
        group = Aggregator(FedAvg(config)).group("0", old, {})
        for kept in spill:
            group.add(kept.tensors, kept.examples, kept.fedopt)
        result = group.result()
    digest = hashlib.sha256()
    for name in sorted(result):
        digest.update(result[name].tobytes())
    norms = list(validator._round.values())
    digest.update(repr(norms).encode())
    return {part: seconds / updates for part, seconds in costs.seconds.items()}, digest.hexdigest()[:16]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fcit-update-") as scratch:
        seconds, whole = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5, Path(scratch))
    print("            clock    CPU")
    for part, (clock, cpu) in {**seconds, "an update": sum(seconds.values())}.items():
        print(f"{part:10} {clock:6.3f} {cpu:6.3f} s")
    print(f"aggregate {whole}")
