"""Scaling figures behind docs/figures.md: ``python -m tests.evidence.scaling`` (part of ``make evidence``).

1. Workers: inline, Ray with one and with two workers of one thread each: start-up, whole run, time of a
   round without compute, memory of a worker.
2. Pools: 50, 1,000 and 10,000 clients with 5 sampled, and 200 sampled of 1,000: seconds a round beside
   training, peak memory of the server process.
3. Flower: the same apps on our Ray engine, on Flower's own simulation, and on Flower's simulation with a
   client that loads the base model inside its train function.

Every measurement is a process of its own; give the machine nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from fcit import config as configuration
from fcit.data.benchmark import open_benchmark
from fcit.data.mini.render import VERSION
from fcit.io.cache import cache_folder
from fcit.runs.create import create
from fcit.runs.environment import quiet_libraries

RESULT = Path(__file__).parent / "results" / "scaling.json"
BASE: dict[str, Any] = {
    "name": "scaling",
    "benchmark": "fcit-mini-short",
    "method": "disco",
    "federation": {"rounds": 2, "clients_per_round": 4},
    "evaluation": {"samples": 16},
    "backbone": {"threads": 1},
}
IDLE_ROUNDS = 30


# --------------------------------------------------------------------------- inside a measuring process


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def heap_mb() -> float:
    """This process's own memory now, without pages shared with the object store."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024, 1)


def idle_round(grid: Any, config: Any) -> float:
    """Median seconds of a round trip of five orders that need no compute (each brings the projector back)."""
    from fcit.federation.messages import ProbeOrder
    from server.courier import Courier

    courier = Courier(grid, config.federation, 50, {"up": 0, "down": 0, "orders": 0})
    text, spent = configuration.dump(config), []
    for _ in range(IDLE_ROUNDS):
        begin = time.perf_counter()
        orders = [(courier.node(k), ProbeOrder(config=text)) for k in range(5)]
        assert sum(1 for reply in courier.send("query.probe", orders, "idle") if reply.has_content()) == 5
        spent.append(time.perf_counter() - begin)
    return round(statistics.median(spent), 4)


def overheads(run: Path, workers: int) -> list[float]:
    """Per round: wall time minus what the clients trained, shared among the workers (describing them is in it)."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    rounds = [e for e in events if e["event"] == "round"]
    return [e["seconds"] - sum(s or 0 for s in e["client_seconds"]) / workers for e in rounds]


def measure(raw: dict[str, Any], output: Path, how: str) -> dict[str, Any]:
    """One run in this process; start-up is counted from here to the first answer of a client."""
    begin = time.perf_counter()
    from clients.app import app
    from server.app import run as serve

    config = configuration.parse({**raw, "output": str(output)})
    folder = create(config)
    first: list[float] = []
    heap: list[float] = []

    class Watch:
        def say(self, kind: str, **values: Any) -> None:
            if kind == "start":
                first.append(time.perf_counter() - begin)
            if kind in ("client", "round"):
                heap.append(heap_mb())

    found: dict[str, Any] = {}
    if how in ("inline", "ray"):
        from fcit import registry

        engine = registry.resolve("engine", how)
        with closing(engine(app, config.federation.clients, config, folder.memory)) as grid:
            serve(folder.path, grid, Watch())
            if config.federation.clients == 50:
                found["idle_round_s"] = idle_round(grid, config)
            if how == "ray":
                found["workers"] = grid.statistics()
    else:
        flower(config, folder.path, Watch(), reload=how == "flowertune")
    workers = config.ray.workers if how != "inline" else 1
    over = overheads(folder.path, workers)
    return {
        **found,
        "startup_s": round(first[0], 2),
        "total_s": round(time.perf_counter() - begin, 2),
        "round_overhead_s": round(statistics.median(over), 3),
        "server_peak_mb": peak_mb(),
        "server_heap_mb": max(heap),
    }


def flower(config: Any, path: Path, watcher: Any, reload: bool) -> None:
    """The run under Flower's own simulation."""
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from server.app import run as serve

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        serve(path, grid, watcher)

    def client() -> ClientApp:
        from clients import app as module
        from clients.worker import worker

        if not reload:
            return module.app
        wrapped = ClientApp()

        def forgetting(handler: Any) -> Any:
            def handle(message: Any, context: Any) -> Any:
                worker.worker.cache_clear()
                worker._backbone.cache_clear()
                return handler(message, context)

            return handle

        wrapped.train()(forgetting(module.train))
        wrapped.evaluate()(forgetting(module.evaluate))
        wrapped.query("describe")(forgetting(module.describe))
        wrapped.query("probe")(forgetting(module.probe))
        wrapped.query("whoami")(module.whoami)
        return wrapped

    run_simulation(
        server_app=server,
        client_app=client(),
        num_supernodes=config.federation.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": config.ray.workers},
        },
    )


# --------------------------------------------------------------------------- the campaign


def apart(raw: dict[str, Any], output: Path, how: str) -> dict[str, Any]:
    """A measurement in its own process."""
    command = [
        sys.executable,
        "-m",
        "tests.evidence.scaling",
        "--measure",
        json.dumps(raw),
        "--how",
        how,
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def merged(**changes: Any) -> dict[str, Any]:
    raw = dict(BASE)
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return raw


def crowd(folder: Path, copies: int = 3) -> dict[str, Any]:
    """A benchmark with 12,000 records of one dataset, so that 10,000 clients have one each."""
    base = configuration.parse({"benchmark": "fcit-mini-short"})
    open_benchmark(base).prepare()
    source, name = cache_folder() / VERSION, "super-CLEVR"
    if not (folder / "datasets").exists():
        shutil.copytree(source / "datasets" / name, folder / "datasets" / name)
        target = folder / "instructions" / name
        target.mkdir(parents=True)
        shutil.copy(source / "instructions" / name / "test.json", target)
        records = json.loads((source / "instructions" / name / "train.json").read_text())
        (target / "train.json").write_text(json.dumps(records * copies))
        spec = {
            "name": "crowd",
            "tasks": [["super-clevr"]],
            "datasets": {"super-clevr": {"train": f"{name}/train.json", "test": f"{name}/test.json"}},
            "partition": {"reserve": 1},
        }
        (folder / "crowd.yaml").write_text(yaml.safe_dump(spec))
    return {"benchmark": str(folder / "crowd.yaml"), "data_root": str(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--parts", nargs="*", default=["workers", "pools", "flower"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet_libraries()
    if args.measure:
        logging.disable(logging.WARNING)
        print(json.dumps(measure(json.loads(args.measure), args.output, args.how)))
        return
    output = args.output.resolve()
    figures: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if "workers" in args.parts:
        apart(BASE, output, "inline")  # warms the feature cache
        figures["workers"] = {
            "inline": apart(BASE, output, "inline"),
            "ray-1": apart(merged(federation={"engine": "ray"}, ray={"workers": 1}), output, "ray"),
            "ray-2": apart(merged(federation={"engine": "ray"}, ray={"workers": 2}), output, "ray"),
        }
    if "pools" in args.parts:
        place = crowd(output / "crowd")
        figures["pools"] = {}
        for pool, sampled in ((100, 5), (1000, 5), (10_000, 5), (1000, 200)):
            federation = {"engine": "ray", "clients": pool, "clients_per_round": sampled, "rounds": 4}
            raw = merged(**place, federation=federation, ray={"workers": 2})
            figures["pools"][f"{pool} clients, {sampled} sampled"] = apart(raw, output, "ray")
    if "flower" in args.parts:
        raw = merged(federation={"engine": "ray"}, ray={"workers": 2})
        figures["flower"] = {
            "FCIT on Ray": apart(raw, output, "ray"),
            "Flower's simulation": apart(raw, output, "flower"),
            "Flower's simulation, model loaded in train": apart(raw, output, "flowertune"),
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
