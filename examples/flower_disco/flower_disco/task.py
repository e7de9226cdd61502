"""The model and the data, which server and clients share."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone


@cache
def _loaded(clients: int) -> tuple[RunConfig, Backbone, Adapters, Benchmark]:
    config = RunConfig.model_validate(
        {
            "benchmark": "fcit-mini-short",
            "method": {"name": "disco"},
            "federation": {"clients": clients, "clients_per_round": 1},
            "adapter": {"projector": "frozen"},  # then nothing is shared: what one subspace learns no other forgets
            "backbone": {"model": "fcit-tiny", "threads": 1},
        }
    )
    backbone = Backbone(config.backbone, config.data.pictures)
    return config, backbone, Adapters(backbone, config.adapter), open_benchmark(config)


def load(run_config: Mapping[str, Any]) -> tuple[RunConfig, Backbone, Adapters, Benchmark]:
    """Loaded once per process, whoever asks."""
    return _loaded(int(run_config["clients"]))


def datasets(benchmark: Benchmark, task: int) -> list[str]:
    """The data sets of a task, rendered if they are not there yet."""
    names = benchmark.spec.tasks[task]
    benchmark.prepare(names)
    return names


def packed(tensors: dict[str, np.ndarray]) -> ArrayRecord:
    """Arrays as Flower sends them."""
    return ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()})


def unpacked(record: ArrayRecord) -> dict[str, np.ndarray]:
    """And back."""
    return {name: array.numpy() for name, array in record.items()}
