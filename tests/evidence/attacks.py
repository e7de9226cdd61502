"""Attack x defence: ``python -m tests.evidence.attacks`` (part of ``make evidence``).

One of the five clients of every round, another slot each time, sends its update multiplied: theta + factor
(theta_k - theta). What the server's checks reject is rejected under every rule and counted; what passes is
left to ``robust:``. With ``--unchecked`` the checks on how far an update moved are off, so that the rules are
seen alone. Every run is a process of its own. Finished runs are kept in ``results/attacks.json``, so the
command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RULES = ("none", "median", "trimmed_mean", "norm_clip")
SETTINGS = ("homogeneous", "heterogeneous")
METHODS = ("finetune", "disco")
FACTORS = (1, -1, -5, -50)  # 1: nobody attacks
EVERY = 5  # clients a round, of which one is hostile
QUICK = ["federation.rounds=1", "federation.clients=200", "evaluation.samples=4"]


def label(run: dict[str, Any]) -> str:
    """Name of a run in the results."""
    return "-".join(str(value) for value in run.values())


def plan(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs; whole tables for the first seed come first. Without an attack there is nothing to check."""
    checks = "off" if args.unchecked else "on"
    return [
        {"method": m, "setting": s, "robust": r, "factor": f, "checks": "on" if f == 1 else checks, "seed": seed}
        for seed, m, s, f, r in itertools.product(args.seeds, args.methods, args.settings, args.factors, RULES)
    ]


def hostile_of(federation: Any, seed: int, stage: int, round_: int) -> int:
    """The client that attacks in a round: one of those sampled, slot after slot."""
    from fcit.federation.sampling import sample

    clients = sample(federation, seed, stage, round_)
    return clients[(stage * federation.rounds + round_) % len(clients)]


def attacking(factor: int, config: Any) -> Any:
    """The ClientApp of which one client a round multiplies what it learnt."""
    from flwr.app import Message

    from clients.app import app
    from fcit.federation import codec
    from fcit.federation.messages import ClientUpdate, TrainOrder

    def answer(message: Message, context: Any) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != "train" or factor == 1 or reply.has_error():
            return reply
        order = codec.decode(message.content, TrainOrder)
        if order.client != hostile_of(config.federation, config.seed, order.stage, order.round):
            return reply
        start = order.trained
        update = codec.decode(reply.content, ClientUpdate)
        # Tensors that only go up (a method's own, the optimiser's) stay as they are.
        update.tensors |= {n: (t + factor * (update.tensors[n] - t)).astype("float32") for n, t in start.items()}
        return Message(codec.encode(update), reply_to=message)

    return answer


def one(run: dict[str, Any], output: Path, quick: bool) -> dict[str, Any]:
    """One run in this process; what is kept of it."""
    from fcit import config as configuration
    from fcit.federation.engines.inline import InlineGrid
    from fcit.runs.environment import describe
    from fcit.runs.folder import RunDir
    from fcit.runs.reader import Run
    from server import validation
    from server.app import run as serve

    if run["checks"] == "off":
        validation.FACTOR = float("inf")
        validation.Validator._too_far = lambda self, order, update: None  # type: ignore[method-assign]
    raw = {
        "name": label(run),
        "benchmark": "fcit-mini-short",
        "backbone": {"threads": 1},
        "output": str(output),
        **{key: run[key] for key in ("method", "setting", "robust", "seed")},
        "federation": {"rounds": 5, "clients": 50, "clients_per_round": 5},
    }
    config = configuration.resolve(raw, ROOT, "attacks", QUICK if quick else [])
    folder = RunDir.create(output, config.name, configuration.dump(config), describe())
    serve(folder.path, InlineGrid(attacking(run["factor"], config), config.federation.clients))
    done = Run(folder.path)
    rounds = done.of("round")
    attackers = [hostile_of(config.federation, config.seed, e["stage"], e["round"]) for e in rounds]
    hostile = [
        sum(client == attacker and n > 0 for client, n in zip(e["clients"], e["examples"], strict=True))
        for e, attacker in zip(rounds, attackers, strict=True)
    ]
    return {
        "run": run,
        "quick": quick,
        **{key: done.results[key] for key in ("Last", "Avg", "forgetting", "subspaces")},
        "rejected": len(done.of("rejected")),
        "hostile_accepted": hostile,
        "accepted": sum(bool(n) for e in rounds for n in e["examples"]),
        "homes_skipped": sum(len(e.get("robust_skipped", [])) for e in rounds),
        "homes": sum(len(set(e["subspaces"])) + 1 for e in rounds),
    }


def read(file: Path) -> dict[str, Any]:
    """What is finished, by label."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: Last for every method, setting and attack, a column per rule."""
    lines = [
        f"| method | setting | attack (1 of {EVERY}) | {' | '.join(RULES)} | rejected | rule skipped |",
        "|---|---|---|" + "---|" * (len(RULES) + 2),
    ]
    attacks = sorted({(r["run"]["factor"], r["run"]["checks"]) for r in results}, reverse=True)
    for method, setting, (factor, checks) in itertools.product(METHODS, SETTINGS, attacks):
        keys, wanted = ("method", "setting", "factor", "checks"), (method, setting, factor, checks)
        found = [r for r in results if tuple(r["run"][key] for key in keys) == wanted]
        if not found:
            continue
        cells = []
        for rule in RULES:
            values = [r["Last"] for r in found if r["run"]["robust"] == rule]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        attack = "none" if factor == 1 else f"x{factor}" + (", unchecked" if checks == "off" else "")
        rejected = sorted({r["rejected"] for r in found})
        ruled = [r for r in found if r["run"]["robust"] != "none"]
        skipped, homes = (sum(r[key] for r in ruled) for key in ("homes_skipped", "homes"))
        share = f"{100 * skipped / homes:.0f} %" if homes else "-"
        span = f"{rejected[0]}" if len(rejected) == 1 else f"{rejected[0]} to {rejected[-1]}"
        lines.append(f"| {method} | {setting} | {attack} | {' | '.join(cells)} | {span} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/evidence/attacks"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "attacks.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--factors", type=int, nargs="+", default=list(FACTORS))
    parser.add_argument("--unchecked", action="store_true", help="attacks with the server's norm checks off")
    parser.add_argument("--quick", action="store_true", help="a round a stage, few records: to try the command")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(json.loads(args.one), args.output, args.quick)))
        return
    lock, finished = threading.Lock(), read(args.results)

    def execute(run: dict[str, Any]) -> None:
        if label(run) in finished:
            return
        command = [
            sys.executable,
            "-m",
            "tests.evidence.attacks",
            "--one",
            json.dumps(run),
            "--output",
            str(args.output.resolve()),
            *(["--quick"] if args.quick else []),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{label(run)} ended with {done.returncode}: {done.stderr[-2000:]}")
        with lock:
            finished[label(run)] = json.loads(done.stdout.splitlines()[-1])
            args.results.parent.mkdir(parents=True, exist_ok=True)
            temporary = args.results.with_suffix(".tmp")
            temporary.write_text(json.dumps(dict(sorted(finished.items())), indent=1) + "\n", encoding="utf-8")
            temporary.replace(args.results)
            print(f"{label(run)}: Last {finished[label(run)]['Last']:.1f}", flush=True)

    runs = plan(args)
    if not args.table:
        args.output.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(execute, runs))
    print(table(list(finished.values())))


if __name__ == "__main__":
    main()
