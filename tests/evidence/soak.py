"""Does anything grow or stay behind? ``python -m tests.evidence.soak`` (part of ``make evidence``).

200 rounds of 20 clients inline, and 60 rounds on two Ray workers of which one is killed now and then.
After every round: resident memory of this process (Ray: of the workers too), open files, sockets and
child processes. Writes ``results/soak.json`` and ``results/soak.svg``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil

from fcit import simulate

RESULTS = Path(__file__).parent / "results"
CONFIG: dict[str, Any] = {
    "benchmark": "fcit-mini-short",
    "method": "disco",
    "backbone": {"threads": 1},
    "evaluation": {"samples": 8},
}
KILLS = 8  # workers killed in the Ray run


def workers(me: psutil.Process) -> list[psutil.Process]:
    """The Ray workers below this process (not Ray's own helpers)."""
    found = []
    for child in me.children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("ray::RayWorker"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Probe:
    """Measures after every round; before some rounds it kills a worker."""

    def __init__(self, rounds: int, kills: int) -> None:
        self.me, self.rows = psutil.Process(), list[dict[str, float]]()
        self.rng = np.random.default_rng(0)
        self.fatal = set(self.rng.choice(np.arange(2, rounds - 2), kills, replace=False).tolist())
        self.killed = 0

    def say(self, kind: str, **values: Any) -> None:
        if kind != "round":
            return
        alive = workers(self.me)
        self.rows.append(
            {
                "server_mb": self.me.memory_info().rss / 2**20,
                "workers_mb": max((w.memory_info().rss / 2**20 for w in alive), default=0.0),
                "files": self.me.num_fds(),
                "sockets": len(self.me.net_connections("all")),
                "children": len(self.me.children(recursive=True)),
            }
        )
        if len(self.rows) in self.fatal and alive:
            alive[int(self.rng.integers(len(alive)))].kill()
            self.killed += 1


def soak(name: str, rounds: int, federation: dict[str, Any], kills: int, folder: Path) -> dict[str, Any]:
    """One long run; ``rounds`` in all, spread over the four stages."""
    me = psutil.Process()
    before = {"files": me.num_fds(), "children": len(me.children(recursive=True))}
    probe = Probe(rounds, kills)
    raw = {**CONFIG, "name": name, "output": str(folder), "federation": {**federation, "rounds": rounds // 4}}
    run = simulate(raw, probe)
    gc.collect()
    after = {"files": me.num_fds(), "children": len(me.children(recursive=True))}
    quarter = len(probe.rows) // 4
    growth = {
        key: statistics.median(r[key] for r in probe.rows[-quarter:])
        - statistics.median(r[key] for r in probe.rows[quarter : 2 * quarter])
        for key in ("server_mb", "workers_mb", "files", "sockets", "children")
    }
    return {
        "rounds": len(probe.rows),
        "killed": probe.killed,
        "Last": run.matrix.last,
        "before": before,
        "after": after,
        "growth_last_against_second_quarter": {k: round(v, 2) for k, v in growth.items()},
        "left_processes": [c.name() for c in me.children(recursive=True)],
        "rows": [{k: round(v, 1) for k, v in row.items()} for row in probe.rows],
    }


def draw(found: dict[str, Any]) -> None:
    """Memory over rounds."""
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "fcit"
    figure, axes = plt.subplots(1, len(found), figsize=(9, 3), sharey=True, squeeze=False)
    for axis, (name, one) in zip(axes[0], found.items(), strict=True):
        rounds = range(1, len(one["rows"]) + 1)
        axis.plot(rounds, [r["server_mb"] for r in one["rows"]], label="server process")
        if name == "ray":
            axis.plot(rounds, [r["workers_mb"] for r in one["rows"]], label="largest worker")
        axis.set(title=f"{name}: {one['rounds']} rounds, {one['killed']} workers killed", xlabel="round")
        axis.legend()
    axes[0][0].set_ylabel("resident memory, MB")
    axes[0][0].set_ylim(
        0, 1.1 * max(r[k] for one in found.values() for r in one["rows"] for k in ("server_mb", "workers_mb"))
    )
    figure.tight_layout()
    figure.savefig(RESULTS / "soak.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, nargs=2, default=(200, 60), metavar=("INLINE", "RAY"))
    parser.add_argument("--dry", action="store_true", help="write nothing into results/")
    args = parser.parse_args()
    pool = {"clients": 400, "clients_per_round": 20, "beta": 5.0, "timeout": 600.0}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["inline"] = soak("inline", args.rounds[0], pool, 0, Path(folder))
        found["ray"] = soak("ray", args.rounds[1], {**pool, "engine": "ray"}, KILLS, Path(folder))
    for name, one in found.items():
        print(name, {k: v for k, v in one.items() if k != "rows"}, flush=True)
    if not args.dry:
        (RESULTS / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found)


if __name__ == "__main__":
    main()
