"""What secure aggregation costs: ``python -m tests.evidence.secagg [--clients 5 20 50] [--result FILE]``.

Bytes and seconds of a round at so many clients, plain and masked:

- *exchange*: one group, the real messages with their encoding, training left out; vectors as large as an adapter of the
  built-in model. ``lost`` repeats it with one client in five gone before its masked update, which costs the server a
  key agreement with every neighbour of each. Clients' seconds are the mean of one client.
- *rounds*: whole runs of two rounds in this process (``engine: inline``), where training is most of it.

Seconds are the median of ``--repeats`` (3); one process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import fcit
from clients.worker import secure
from clients.worker.memory import ClientMemory
from fcit import config as configuration
from fcit.config import RunConfig
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, KeysOrder, MaskOrder, ShareOrder, TrainOrder, UnmaskOrder
from fcit.fedopt.base import Mean
from fcit.io.files import write_text
from fcit.io.trees import Tensors
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.runs.environment import versions
from fcit.runs.reader import Run
from server.checkpoint import Progress
from server.journal import Journal
from server.secure import SecureCollector
from server.sums import Sums

RESULT = Path(__file__).parent / "results" / "secagg.json"
SIZES = [5, 20, 50]
KINDS = {
    "query.keys": (KeysOrder, secure.keys),
    "query.shares": (ShareOrder, secure.share),
    "train.masked": (MaskOrder, secure.train),
    "query.unmask": (UnmaskOrder, secure.unmask),
}
RECORDS = 20  # of each client
ROUNDS = {
    "name": "secagg",
    "benchmark": "fcit-mini-short",
    "method": "finetune",
    "evaluation": {"when": "final", "samples": 4},
    "backbone": {"threads": 1},
    "training": {"batch_size": 4},
}


def settings(clients: int, masked: bool) -> dict[str, Any]:
    """The sections that differ between the runs of a comparison."""
    federation = {"clients": clients, "clients_per_round": clients, "rounds": 1, "beta": 100.0}
    return {"federation": federation, "privacy": {"secure_aggregation": "on" if masked else "off"}}


def adapter(config: RunConfig) -> Tensors:
    """The tensors of one subspace and the projector, as a client trains them."""
    return Adapters(Backbone(config.backbone, config.data.pictures), config.adapter).read()


class Wire:
    """Stands where the courier stands: every message is encoded and read, and a stub of a client does the order."""

    def __init__(self, config: RunConfig, folder: Path, lost: set[int]) -> None:
        self._config, self._memory, self._lost = config, ClientMemory(folder), lost
        self.bytes = Counter[str]()
        self.client_seconds = 0.0

    def node(self, client: int) -> int:
        """Every client is its own node."""
        return client

    client = node

    def send(self, kind: str, orders: list[tuple[int, Any]], group: str) -> Iterator[Any]:
        """Replies of those that are not lost, one by one."""
        form, work = KINDS[kind]
        contents = codec.encode_all([order for _, order in orders])
        for (client, _), content in zip(orders, contents, strict=True):
            self.bytes["down"] += codec.size(content)
            if kind == "train.masked" and client in self._lost:
                continue
            begin = time.perf_counter()
            order: Any = codec.decode(content, form, writable=True)
            worker = SimpleNamespace(config=self._config, memory=self._memory, trained=update)
            reply = codec.encode(work(worker, order))
            self.client_seconds += time.perf_counter() - begin
            self.bytes["up"] += codec.size(reply)
            yield SimpleNamespace(metadata=SimpleNamespace(src_node_id=client), content=reply, has_error=lambda: False)


def update(order: TrainOrder) -> ClientUpdate:
    """An update without training: every number moves a little."""
    rng = np.random.default_rng(order.client)
    moved = {n: t + rng.normal(0, 0.01, t.shape).astype(np.float32) for n, t in order.trained.items()}
    return ClientUpdate(
        stage=0,
        round=0,
        client=order.client,
        shard="s",
        subspace="0",
        examples=RECORDS,
        steps=2,
        loss=1.0,
        seconds=0.0,
        tensors=moved,
    )


def orders(text: str, tensors: Tensors, clients: int) -> dict[tuple[int, str], TrainOrder]:
    """Orders to train, whose tensors are the same objects."""
    plain = {"config": text, "stage": 0, "round": 0, "shard": "s", "tasks": [0], "subspace": "0", "run": "r"}
    return {(k, "s"): TrainOrder(**plain, client=k, tensors=tensors) for k in range(clients)}


def masked(tensors: Tensors, clients: int, lost: int) -> dict[str, float]:
    """One group's four exchanges, and its sum."""
    config = configuration.parse({**ROUNDS, **settings(clients, True)})
    with tempfile.TemporaryDirectory(prefix="fcit-secagg-") as folder:
        wire, sums = Wire(config, Path(folder), set(range(lost))), Sums()
        silent = SimpleNamespace(event=lambda kind, **values: None, say=lambda kind, **values: None)
        progress = Progress(declared={f"{k}/s": RECORDS for k in range(clients)})
        collector = SecureCollector(
            **dict.fromkeys(("stream", "run", "state", "handshake", "assigner", "stop")),
            config=config,
            progress=progress,
            orders=SimpleNamespace(text=configuration.dump(config), run="r"),
            courier=wire,
            journal=Journal(silent, silent, progress),
            sums=sums,
            clip=lambda: None,
        )
        asked = orders(configuration.dump(config), tensors, clients)
        begin = time.perf_counter()
        accepted = collector._ask(asked, 0)
        whole = time.perf_counter() - begin
    assert len(accepted) == clients - lost
    return measured(wire.bytes, wire.client_seconds / clients, whole - wire.client_seconds)


def plain(tensors: Tensors, clients: int) -> dict[str, float]:
    """The same updates sent as they are and averaged."""
    config = configuration.parse({**ROUNDS, **settings(clients, False)})
    asked, count, client_seconds, mean = (
        orders(configuration.dump(config), tensors, clients),
        Counter[str](),
        0.0,
        Mean(),
    )
    start = time.perf_counter()
    for content in codec.encode_all(list(asked.values())):
        count["down"] += codec.size(content)
        begin = time.perf_counter()
        reply = codec.encode(update(codec.decode(content, TrainOrder, writable=True)))
        client_seconds += time.perf_counter() - begin
        count["up"] += codec.size(reply)
        mean.add(codec.decode(reply, ClientUpdate, reply=True).tensors, RECORDS)
    mean.result()
    return measured(count, client_seconds / clients, time.perf_counter() - start - client_seconds)


def measured(count: Counter[str], client: float, server: float) -> dict[str, float]:
    """A line of the result."""
    return {"up": count["up"], "down": count["down"], "client_seconds": client, "server_seconds": server}


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}


def whole_rounds(clients: int, is_masked: bool) -> dict[str, float]:
    """Seconds, seconds of clients and bytes of the last round of a run."""
    with tempfile.TemporaryDirectory(prefix="fcit-secagg-") as folder:
        raw = {**ROUNDS, **settings(clients, is_masked), "output": folder, "data": {"max_records": RECORDS * clients}}
        run: Run = fcit.simulate(raw)
        event = run.of("round")[-1]
    spent = sum(seconds or 0.0 for seconds in event["client_seconds"])
    return {"seconds": event["seconds"], "client_seconds": round(spent, 3), "up": event["up"], "down": event["down"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tensors = adapter(configuration.parse({**ROUNDS, **settings(max(SIZES), True)}))
    numbers = sum(tensor.size for tensor in tensors.values())
    result: dict[str, Any] = {"numbers": numbers, "versions": versions(), "exchange": {}, "rounds": {}}
    for clients in chosen.clients:
        result["exchange"][str(clients)] = {
            "plain": median([plain(tensors, clients) for _ in range(chosen.repeats)]),
            "masked": median([masked(tensors, clients, 0) for _ in range(chosen.repeats)]),
            "lost": median([masked(tensors, clients, clients // 5) for _ in range(chosen.repeats)]),
        }
        result["rounds"][str(clients)] = {
            name: whole_rounds(clients, is_masked) for name, is_masked in (("plain", False), ("masked", True))
        }
        print(clients, json.dumps(result["exchange"][str(clients)]), json.dumps(result["rounds"][str(clients)]))
    write_text(chosen.result, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
