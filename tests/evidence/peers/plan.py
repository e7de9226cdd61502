"""The work that all compared programs do, from fcit's own benchmark and partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.data.records import TestRecord
from fcit.models.places import locate
from server.participants import slots_of_round


def raw(records: int, samples: int) -> dict[str, Any]:
    """Configuration of the compared runs, without their engine.

    Args:
        records: training records of a data set.
        samples: questions of a data set.
    """
    return {
        "name": "peers",
        "benchmark": "fcit-mini-short",
        "method": "finetune",
        # Every client takes part in every round: Flower draws nodes by numbers that are new in every run.
        "federation": {"rounds": 2, "clients": 4, "clients_per_round": 4},
        "fork": {"workers": 2},
        "ray": {"workers": 2},
        "data": {"max_records": records},
        "adapter": {"dropout": 0},
        "training": {"schedule": "trainer"},  # that of transformers, which the others use
        "evaluation": {"samples": samples},
        "backbone": {"threads": 1},
    }


def made(config: RunConfig, features: Path) -> dict[str, Any]:
    """The plan: for every stage and round the file of each client's records, for every data set its questions.

    Args:
        features: where the programs that keep features of pictures keep them.
    """
    benchmark = open_benchmark(config)
    benchmark.prepare()
    benchmark.divide()
    adapter, training = config.adapter, config.training
    return {
        "model": locate(config.backbone.model, config.backbone.identity)[0],
        "images": str(benchmark.image_root),
        "features": str(features),
        "seed": config.seed,
        "clients": config.federation.clients,
        "lora": {
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "dropout": adapter.dropout,
            "targets": adapter.targets,
        },
        "lr": training.lr,
        "batch_size": training.batch_size,
        "warmup_ratio": training.warmup_ratio,
        "max_grad_norm": training.max_grad_norm,
        "answer_batch_size": config.evaluation.at_once,
        "stages": [_stage(config, benchmark, stage) for stage in range(benchmark.stage_count)],
        "questions": {
            name: {
                "max_new_tokens": config.evaluation.longest(benchmark.datasets[name].max_new_tokens),
                "asked": [_question(record) for record in benchmark.test(name)],
            }
            for name in benchmark.evaluation(benchmark.stage_count - 1)
        },
    }


def _stage(config: RunConfig, benchmark: Benchmark, stage: int) -> dict[str, Any]:
    method = registry.resolve("method", config.method["name"])(config)
    rounds = []
    for round_ in range(config.federation.rounds):
        slots = slots_of_round(config, benchmark, method, stage, round_)
        shares = [_share(benchmark, slot.client, slot.tasks) for slot in slots]
        rounds.append(sorted(shares, key=lambda share: share["client"]))
    return {"rounds": rounds, "evaluate": benchmark.evaluation(stage)}


def _share(benchmark: Benchmark, client: int, tasks: tuple[int, ...]) -> dict[str, Any]:
    [task] = tasks
    file = benchmark.client_files.file(client, task)
    return {"client": client, "file": str(file), "records": len(benchmark.shard(client, task))}


def _question(record: TestRecord) -> dict[str, Any]:
    return {"image": record.image, "text": record.instruction, "answers": list(record.references or (record.answer,))}
