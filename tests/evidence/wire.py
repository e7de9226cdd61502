"""What an update costs on the wire, and what is lost on the way: number formats, sparse updates, lossless compression.

``python -m tests.evidence.wire`` writes ``results/wire.json``: at rank 8 and 32 one client of the built-in benchmark
trains its shard of a task in five orders, each from what the server has after the last; with every form of update,

- bytes of the message and of its head,
- error: ||Q(d + e) - (d + e)|| / ||d + e|| of the first and of the last update,
- owed: ||e|| / ||d|| after the last,
- zlib and zstd: bytes of the message's pieces after compression, over before (levels 6 and 3; zstd level 19, too).

Orders are measured likewise. It takes a minute of a core.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clients.worker.worker import Worker, worker
from fcit import config as configuration
from fcit.config import RunConfig
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, ProbeOrder, TrainOrder
from fcit.federation.thin import Thin
from fcit.io.files import write_text
from fcit.io.trees import Tensors
from fcit.methods.factory import Factory
from fcit.models.layout import is_projector

RESULT = Path(__file__).parent / "results" / "wire.json"
RANKS, UPDATES, CLIENT, TASK = (8, 32), 5, 0, 0
FORMS = [(wire, top_k) for top_k in (None, 0.1, 0.01) for wire in ("float32", "bfloat16", "int8")]


def main() -> None:
    """Measure and write."""
    results = {f"rank {rank}": at(rank) for rank in RANKS}
    write_text(RESULT, json.dumps(results, indent=1) + "\n")
    for rank, forms in results.items():
        for form, values in forms.items():
            print(rank, form, values)


def at(rank: int) -> dict[str, Any]:
    """Figures of every form at a rank."""
    raw = {"benchmark": "fcit-mini-short", "method": "finetune", "backbone": {"threads": 1}, "seed": 0}
    raw["data"] = {"max_records": 600}  # some sixty of them are the client's
    federation = {"clients": 10, "clients_per_round": 5, "rounds": 5}
    config = configuration.parse(
        {**raw, "federation": federation, "adapter": {"rank": rank, "alpha": 2 * rank, "dropout": 0}}
    )
    with tempfile.TemporaryDirectory() as folder:
        return _forms(config, worker(configuration.dump(config), folder))


def _forms(config: RunConfig, client: Worker) -> dict[str, Any]:
    text = configuration.dump(config)
    start = _start(config, client)
    figures: dict[str, Any] = {}
    print(f"rank {config.adapter.rank}", flush=True)
    for wire in ("float32", "bfloat16", "int8"):
        figures[f"order {wire}"] = _bytes(codec.encode(_order(text, 0, start), wire))
    for wire, top_k in FORMS:
        thin = None if (wire, top_k) == ("float32", None) else Thin(wire, top_k)
        figures[f"update {wire} {top_k or 1}"] = _form(text, client, start, thin, wire)
    return figures


def _form(text: str, client: Worker, start: Tensors, thin: Thin | None, wire: str) -> dict[str, Any]:
    """Five updates of one client, one after the other."""
    at_server, owed, errors, values = dict(start), dict[str, Any](), list[float](), dict[str, Any]()
    for round_ in range(UPDATES):
        order = _order(text, round_, at_server)
        received = codec.decode(codec.encode(order, wire), TrainOrder, writable=True)
        update = client.trained(received)
        moved = {n: update.tensors[n] - received.tensors[n] for n in received.trained}
        wanted = _norm({n: moved[n] + before for n, before in _owed(owed, moved).items()})
        if thin is not None:
            sent = thin.sent(received, {n: update.tensors[n] for n in moved}, owed)
            update.tensors = sent
        content = codec.encode(update, wire)
        errors.append(_norm(_owed(owed, moved)) / wanted)
        if round_ == 0:
            values = _bytes(content)
        there = codec.decode(content, ClientUpdate, reply=True)
        at_server = (thin.restored(order, there) if thin is not None else there).tensors
        values["owed"] = round(_norm(_owed(owed, moved)) / _norm(moved), 5)
    return values | {"error": [round(errors[0], 5), round(errors[-1], 5)]}


def _owed(owed: dict[str, Any], like: Tensors) -> Tensors:
    pairs = dict(owed["subspaces"][0][1]) if owed else {}
    return {name: pairs.get(name, np.zeros_like(tensor)) for name, tensor in like.items()}


def _norm(tensors: Tensors) -> float:
    return float(np.sqrt(sum(np.square(t, dtype=np.float64).sum() for t in tensors.values())))


def _start(config: RunConfig, client: Worker) -> Tensors:
    probe = client.probe(ProbeOrder(config=""))
    shapes = {name: tuple(shape) for name, shape in probe.shapes.items()}
    projector = {n: t for n, t in probe.tensors.items() if is_projector(n)}
    given = {n: t for n, t in probe.tensors.items() if n not in projector}
    return {**projector, **Factory(config.seed, shapes, projector, given=given)("0")}


def _order(text: str, round_: int, tensors: Tensors) -> TrainOrder:
    return TrainOrder(
        config=text, stage=0, round=round_, client=CLIENT, shard="s", tasks=[TASK], subspace="0", tensors=tensors
    )


def _bytes(content: Any) -> dict[str, Any]:
    """Bytes of a message, and what compression makes of its pieces."""
    head, arrays = codec.take_apart(content)
    data = b"".join(array.data for array in arrays.values())
    zstd = {f"zstd {level}": pa.Codec("zstd", level).compress(data, asbytes=True) for level in (3, 19)}
    squeezed = {"zlib 6": zlib.compress(data, 6)} | zstd
    return {
        "bytes": codec.size(content),
        "head": len(head),
        **{name: round(len(shorter) / len(data), 3) for name, shorter in squeezed.items()},
    }


if __name__ == "__main__":
    main()
