"""What a message costs on Flower's wire, an array for each tensor against packed ones.

``python -m tests.evidence.messages`` writes ``results/messages.json``. The messages are those of LLaVA-1.5-7B with LoRA
(rank 8) in the MLPs and a trained projector, random numbers in float32: an order to train (130 MB) and one to evaluate
eight subspaces (455 MB). Seconds are medians of three, peaks are what Python and numpy held beyond the tensors
themselves; both forms are measured in one process, one after the other.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from fcit.federation import codec
from fcit.federation.messages import EvaluateOrder, TrainOrder
from fcit.io.files import write_text
from fcit.io.trees import Tensors
from fcit.runs.environment import versions

RESULT = Path(__file__).parent / "results" / "messages.json"
REPEATS = 3
RANK, HIDDEN, INNER, VISION, LAYERS, SUBSPACES = 8, 4096, 11008, 1024, 32, 8


def subspace(rng: np.random.Generator) -> Tensors:
    """The LoRA factors of one subspace."""
    shapes = {}
    for layer in range(LAYERS):
        for name, into, out in (("gate", HIDDEN, INNER), ("up", HIDDEN, INNER), ("down", INNER, HIDDEN)):
            stem = f"base_model.model.model.language_model.layers.{layer}.mlp.{name}_proj"
            shapes |= {f"{stem}.lora_A.weight": (RANK, into), f"{stem}.lora_B.weight": (out, RANK)}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def projector(rng: np.random.Generator) -> Tensors:
    """LLaVA's two layers."""
    shapes = {"1.weight": (HIDDEN, VISION), "1.bias": (HIDDEN,), "2.weight": (HIDDEN, HIDDEN), "2.bias": (HIDDEN,)}
    stem = "base_model.model.model.multi_modal_projector.linear_"
    return {stem + name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def orders() -> dict[str, Any]:
    """An order to train and one to evaluate."""
    rng = np.random.default_rng(0)
    shared, text = projector(rng), "x" * 4000
    train = TrainOrder(
        config=text, stage=0, round=0, client=0, shard="s", tasks=[0], subspace="0", tensors=shared | subspace(rng)
    )
    names = [str(n) for n in range(SUBSPACES)]
    mixed = {f"shared/{name}": tensor for name, tensor in shared.items()}
    for n in names:
        mixed |= {f"subspace-{n}/{name}": tensor for name, tensor in subspace(rng).items()}
    evaluate = EvaluateOrder(
        config=text, dataset="d", first=0, last=64, task="", names=names, knowledge={}, tensors=mixed
    )
    return {"train": train, "evaluate": evaluate}


# ---------------------------------------------------------------------- an array for each tensor, as in 0.1.0


def encode_each(record: Any) -> RecordDict:
    """The message in the form of 0.1.0."""
    fields = {name: value for name, value in vars(record).items() if name != "tensors"}
    head = {"type": type(record).__name__, "fields": fields, "names": list(record.tensors), "bfloat16": []}
    arrays = {name: Array(tensor) for name, tensor in record.tensors.items()}
    return RecordDict({"head": ConfigRecord({"json": json.dumps(head)}), "tensors": ArrayRecord(arrays)})


def decode_each(content: RecordDict, kind: type) -> Tensors:
    """Its tensors."""
    json.loads(str(content.config_records["head"]["json"]))
    return {
        name: np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False)
        for name, array in content.array_records["tensors"].items()
    }


# ---------------------------------------------------------------------- measuring


def seconds(work: Callable[[], Any]) -> float:
    """Median wall time."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 4)


def peak(work: Callable[[], Any]) -> float:
    """Most MB held at once while working."""
    tracemalloc.start()
    try:
        kept = work()
        most = tracemalloc.get_traced_memory()[1]
        del kept
        return round(most / 1e6, 1)
    finally:
        tracemalloc.stop()


def stored(content: RecordDict) -> float:
    """Seconds for which registering a message's objects holds the write lock of the SuperLink's database."""
    tree = get_object_tree(content)
    times = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            store = SqlObjectStore(f"{folder}/state.db")
            store.initialize()
            begin = time.perf_counter()
            store.preregister(1, tree)
            times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 4)


def measure(record: Any, encode: Callable[[Any], RecordDict], decode: Callable[[RecordDict, type], Any]) -> dict:
    """The figures of one message in one form."""
    content = encode(record)
    objects = get_all_nested_objects(content)

    def arrived() -> RecordDict:
        return inflate_object_from_contents(content.object_id, dict(contents))  # type: ignore[return-value]

    figures = {
        "objects": len(objects),
        "bytes": codec.size(content),
        "encode_seconds": seconds(lambda: encode(record)),
        "encode_peak_mb": peak(lambda: encode(record)),
        "register_seconds": stored(content),
    }
    contents = {name: item.deflate() for name, item in objects.items()}
    figures |= {
        "put_together_seconds": seconds(arrived),
        "put_together_peak_mb": peak(arrived),
        "decode_seconds": seconds(lambda: decode(content, type(record))),
        "decode_peak_mb": peak(lambda: decode(content, type(record))),
    }
    return figures


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=["train", "evaluate"], help="print one message's figures, write nothing")
    only = parser.parse_args().only
    figures: dict[str, Any] = {}
    for name, order in orders().items():
        if only in (None, name):
            figures[name] = {
                "tensors": len(order.tensors),
                "an array each": measure(order, encode_each, decode_each),
                "packed": measure(order, codec.encode, codec.decode),
            }
            print(json.dumps({name: figures[name]}, indent=1), flush=True)
    if only is None:
        libraries = {name: version for name, version in versions().items() if name in ("flwr", "numpy", "python")}
        write_text(RESULT, json.dumps({**figures, "versions": libraries}, indent=1) + "\n")


if __name__ == "__main__":
    main()
