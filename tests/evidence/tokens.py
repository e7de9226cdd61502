"""What noise on descriptions costs DISCO: ``python -m tests.evidence.tokens`` (minutes; ``--table`` only prints).

Descriptions, assignments and routing of whole homogeneous eight-task runs (``fcit-mini-task``, 50 clients, 5 a round,
ten rounds a stage, beta 1), three seeds, without training: none of it depends on training. Every epsilon is that of one
description, delta 1e-5. ``central`` is the variant that FCIT does not have: the server assigns by exact descriptions
and adds noise for whole clients to the tokens that it keeps, once, when all clients have come; every client's mean
feature weighs the same, and epsilon is over all of its shards.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clients.worker.worker import Worker, worker
from fcit import config as configuration
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.methods.base import Factory, Pair, ServerState, Stats
from fcit.methods.disco import Disco
from fcit.methods.knowledge_cache import cosine
from fcit.privacy import accountant, tokens
from fcit.privacy.noise import Noise, published
from server import descriptions
from server.participants import slots_of_round

RESULT = Path(__file__).parent / "results" / "tokens.json"
SEEDS = (0, 1, 2)
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, None)  # None: no noise
DELTA = 1e-5
SIZES = ((1, 20), (21, 50), (51, 100), (101, 10_000))  # records of a shard


@dataclass(frozen=True)
class Shard:
    """What a client knows of a shard: its task, the sum of its features as they are and of those of length 1."""

    task: int
    plain: Stats
    unit: Stats


@dataclass(frozen=True)
class World:
    """The shards of a run, those of each round, and the features of the test questions by task."""

    config: RunConfig
    rounds: list[list[Pair]]
    shards: Mapping[Pair, Shard]
    questions: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, seed: int) -> World:
        config = configuration.parse({"benchmark": "fcit-mini-task", "method": "disco", "seed": seed})
        benchmark = open_benchmark(config)
        benchmark.prepare()
        benchmark.divide()
        site, rounds, shards = worker(configuration.dump(config)), list[list[Pair]](), dict[Pair, Shard]()
        for stage in range(benchmark.stage_count):
            for round_ in range(config.federation.rounds):
                slots = slots_of_round(config, benchmark, Disco, stage, round_)
                rounds.append([slot.pair for slot in slots])
                for slot in slots:
                    if slot.pair not in shards:
                        shards[slot.pair] = _shard(site, slot.client, slot.tasks[0])
        return cls(config, rounds, shards, _questions(site, benchmark))


def _shard(site: Worker, client: int, task: int) -> Shard:
    features = site._identity(site.data.records(client, [task]))
    plain, unit = (site.method.describe(rows) for rows in (features, tokens.clipped(features)))
    return Shard(task, plain, unit)


def _questions(site: Worker, benchmark: Benchmark) -> dict[int, np.ndarray]:
    return {
        task: np.concatenate([site._question_identity(name) for name in names])
        for task, names in enumerate(benchmark.tasks)
    }


def assigned(world: World, multiplier: float | None) -> ServerState:
    """The server's state after all rounds, with the noise multiplier of every description."""
    config, method = world.config, Disco(world.config)
    state, make = ServerState(), Factory(0, {"x.lora_A.weight": (1, 1)})
    noise, lengths, openings = Noise(published(config.seed)), list[float](), dict[str, int]()
    for pairs in world.rounds:
        stats = {pair: _described(world.shards[pair], pair, multiplier, noise) for pair in pairs}
        stats = {pair: described for pair, described in stats.items() if pair not in state.assigned}
        for pair in descriptions.outliers(stats, method, lengths, multiplier):
            del stats[pair]
        here = [pair for pair in pairs if pair in stats or pair in state.assigned]
        descriptions.assign(method, state, stats, here, make, config.federation, openings)
    return state


def _described(shard: Shard, pair: Pair, multiplier: float | None, noise: Noise) -> Stats:
    if multiplier is None:
        return shard.plain
    return Stats(tokens.noised(shard.unit.total, multiplier, noise, *pair), shard.unit.count)


def owners(world: World, state: ServerState) -> dict[str, int]:
    """The task that most shards of each subspace are of."""
    counts: dict[str, Counter[int]] = {}
    for pair, name in state.assigned.items():
        counts.setdefault(name, Counter())[world.shards[pair].task] += 1
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def put_right(world: World, state: ServerState) -> dict[Pair, bool]:
    """Whether each shard is where most shards of its task are, in a subspace that is of this task."""
    owner, homes = owners(world, state), dict[int, str]()
    for task in world.questions:
        names = Counter(name for pair, name in state.assigned.items() if world.shards[pair].task == task)
        own = [name for name, _ in names.most_common() if owner[name] == task]
        homes |= {task: own[0]} if own else {}
    return {pair: state.assigned.get(pair) == homes.get(shard.task, "") for pair, shard in world.shards.items()}


def routed_right(world: World, names: list[str], kept: np.ndarray, owner: Mapping[str, int]) -> float:
    """Share of the test questions whose most similar token ``kept (E, d)`` is of their task, by tasks."""
    shares = []
    for task, features in world.questions.items():
        best = cosine(features, kept).argmax(axis=1)
        shares.append(np.mean([owner.get(names[index]) == task for index in best]))
    return float(np.mean(shares))


def central(world: World, exact: ServerState, epsilon: float | None) -> float:
    """Share of questions routed right by tokens that the server has noised for whole clients, once, at the end."""
    most = max(Counter(client for client, _ in world.shards).values())
    multiplier = 0.0 if epsilon is None else accountant.multiplier_for(epsilon, DELTA, most)
    sums: dict[str, np.ndarray] = {}
    for pair, name in exact.assigned.items():
        unit = world.shards[pair].unit
        sums[name] = sums.get(name, 0.0) + unit.total / unit.count
    noise = Noise(published(world.config.seed))
    noisy = [total + multiplier * noise.normal(total.shape, "central", repr(epsilon), n) for n, total in sums.items()]
    return routed_right(world, list(sums), np.stack(noisy), owners(world, exact))


def measured(world: World) -> list[dict[str, Any]]:
    """One row for each epsilon."""
    exact, rows = assigned(world, None), []
    for epsilon in EPSILONS:
        multiplier = None if epsilon is None else accountant.multiplier_for(epsilon, DELTA, 1)
        state = exact if multiplier is None else assigned(world, multiplier)
        right, cache = put_right(world, state), Disco(world.config)._cache(state)
        sizes = {pair: shard.unit.count for pair, shard in world.shards.items()}
        bins = {
            f"{low}-{high}": [right[pair] for pair, size in sizes.items() if low <= size <= high] for low, high in SIZES
        }
        rows.append(
            {
                "seed": world.config.seed,
                "epsilon": epsilon,
                "noise_multiplier": multiplier and round(multiplier, 4),
                "subspaces": len(state.subspaces),
                "tasks_with_a_subspace": len(set(owners(world, state).values())),
                "left_out": len(world.shards) - len(state.assigned),
                "shards": len(world.shards),
                "put_right": round(float(np.mean(list(right.values()))), 4),
                "put_right_by_records": {name: round(float(np.mean(each)), 4) for name, each in bins.items()},
                "shards_by_records": {name: len(each) for name, each in bins.items()},
                "questions_right": round(routed_right(world, cache.names, cache.tokens, owners(world, state)), 4),
                "questions_right_central": round(central(world, exact, epsilon), 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, mean over seeds."""
    bins = list(rows[0]["put_right_by_records"])
    head = ["token epsilon", "noise z", "subspaces", "shards put right", *bins, "questions right", "central: questions"]
    lines = [head, ["---"] * len(head)]
    for epsilon in EPSILONS:
        those = [row for row in rows if row["epsilon"] == epsilon]
        subspaces = sorted(row["subspaces"] for row in those)
        share = [np.mean([row["put_right"] for row in those])]
        share += [np.mean([row["put_right_by_records"][name] for row in those]) for name in bins]
        share += [np.mean([row[key] for row in those]) for key in ("questions_right", "questions_right_central")]
        noise = "-" if epsilon is None else f"{those[0]['noise_multiplier']:.2f}"
        found = f"{subspaces[0]}" if subspaces[0] == subspaces[-1] else f"{subspaces[0]} to {subspaces[-1]}"
        name = "no noise" if epsilon is None else f"{epsilon:g}"
        lines.append([name, noise, found, *(f"{100 * value:.0f} %" for value in share)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of what was measured")
    if not parser.parse_args().table:
        rows = [row for seed in SEEDS for row in measured(World.of(seed))]
        RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
