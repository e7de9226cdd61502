"""What a large pool costs the server: ``python -m tests.evidence.pool`` (part of no ``make``; a few minutes).

Rounds of 1,000 clients out of pools of 10,000, 100,000 and 1,000,000, orders answered at once without training: drawing
clients, the simulated clock, orders, encoding, checks, spill, mean, checkpoint. CPU seconds of a round without those of
the pretended clients, memory of the process, and how both grow from the first rounds to the last. Every line is a
process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Message

from fcit import config as configuration
from fcit import registry
from fcit.federation import codec
from fcit.federation.engines.virtual import VirtualGrid
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.staleness import RULES
from fcit.methods.base import ServerState
from fcit.runs.folder import RunDir
from server import checkpoint
from server.checkpoint import Progress
from server.clock import Clock
from server.collect import Collector
from server.courier import Courier
from server.dispatch import Dispatcher
from server.late import LateSpill
from server.orders import Orders
from server.simulated import SimulatedCollector
from server.spill import Spill
from server.timeline import Timeline
from server.validation import Validator

RESULT = Path(__file__).parent / "results" / "pool.json"
POOLS, MODES, SAMPLED, ROUNDS = (10_000, 100_000, 1_000_000), ("sync", "async"), 1_000, 4


class Instant(VirtualGrid):
    """Clients that answer at once; ``spent`` are the CPU seconds of their side."""

    spent = 0.0

    def close(self) -> None:
        """Nothing to release."""

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        for message in messages:
            self._number(message)
        for message in messages:
            begin = time.process_time()
            order = codec.decode(message.content, TrainOrder)
            update = ClientUpdate(
                **order.answered,
                examples=16,
                steps=1,
                loss=1.0,
                seconds=1.0,
                tensors={name: tensor + np.float32(1e-4) for name, tensor in order.trained.items()},
            )
            reply = Message(codec.encode(update), reply_to=message)
            self.spent += time.process_time() - begin
            yield reply


class Stream:
    """One stage in which every client has 16 records."""

    def slots(self, stage: int) -> list[tuple[int, ...]]:
        return [(0,)] * SAMPLED

    def most_records(self, client: int, tasks: Any) -> int:
        return 16


def rounds(pool: int, mode: str) -> dict[str, Any]:
    """Some rounds in this process."""
    raw = {
        "method": "finetune",
        "federation": {"mode": mode, "clients": pool, "clients_per_round": SAMPLED, "rounds": ROUNDS + 1},
        "devices": {"profile": "phone"},
    }
    config = configuration.parse(raw)
    method = registry.resolve("method", "finetune")(config)
    fedopt = registry.resolve("fedopt", "fedavg")(config)
    shapes = {"layer.lora_A.weight": (8, 64), "layer.lora_B.weight": (64, 8)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    state, progress = ServerState(subspaces={"0": tensors}), Progress(timeline=Timeline())
    assert progress.timeline is not None
    orders = Orders(config, Stream(), method, fedopt)  # type: ignore[arg-type]  (what is asked of a stream here)
    clock = Clock(config, Stream(), orders, progress.timeline)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        run, grid = RunDir(Path(folder)), Instant(pool)
        assigner = SimpleNamespace(assign=lambda slots: method.assign(state, [s.pair for s in slots], {}, None))
        silent = SimpleNamespace(
            timed=lambda name: nullcontext(), round_event=lambda *a, **v: None, show=lambda *a, **v: None
        )
        common: dict[str, Any] = {
            "config": config,
            "stream": Stream(),
            "state": state,
            "progress": progress,
            "orders": orders,
            "clock": clock,
        }
        parts: dict[str, Any] = {
            **common,
            "run": run,
            "courier": Courier(grid, config.federation, pool, progress.traffic),
            "handshake": SimpleNamespace(update=lambda: None),
            "assigner": assigner,
            "journal": silent,
            "stop": None,
            "validator": Validator.of(config, True, []),
        }
        spill: Spill
        if mode == "async":
            spill = LateSpill(run, RULES["fedbuff"](config.asynchronous))
            dispatcher = Dispatcher(**common, assign=assigner.assign)
            collector: Collector = SimulatedCollector(**parts, spill=spill, dispatcher=dispatcher)
        else:
            spill = Spill(run)
            collector = Collector(**parts, spill=spill)
        seconds, memory, sizes, accepted = [], [], [], 0
        for _ in range(ROUNDS):
            begin, clients = time.process_time(), grid.spent
            gathered = collector.round()
            accepted += len(gathered.accepted)
            method.aggregate(state, spill, Aggregator(fedopt))
            for order in gathered.accepted.values():
                progress.constants[str(order.client)] = order.constants
                progress.kept[str(order.client)] = 0
            parts["validator"].close_round()
            progress.round += 1
            checkpoint.save(run, state, progress)
            spill.clear()
            seconds.append(round(time.process_time() - begin - (grid.spent - clients), 3))
            memory.append(round(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20))
            sizes.append(checkpoint.complete(run)[0].joinpath("state.json").stat().st_size)
    assert accepted == SAMPLED * ROUNDS, f"{accepted} updates were accepted"
    return {"pool": pool, "mode": mode, "seconds": seconds, "MiB": memory, "state_bytes": sizes}


def main() -> None:
    """One process for each line; prints and writes them all."""
    if sys.argv[1:]:
        print(json.dumps(rounds(int(sys.argv[1]), sys.argv[2])))
        return
    lines = []
    for pool in POOLS:
        for mode in MODES:
            command = [sys.executable, "-m", "tests.evidence.pool", str(pool), mode]
            lines.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(lines[-1], flush=True)
    RESULT.write_text(json.dumps({"sampled": SAMPLED, "rounds": ROUNDS, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
