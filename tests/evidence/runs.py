"""The comparison behind docs/figures.md: ``python -m tests.evidence.runs`` (part of ``make evidence``).

Every run is an ordinary ``fcit run``; two at a time with one thread each. Finished runs are kept, so
the command can be stopped and started again. Results go to ``tests/evidence/results/``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "results"
METHODS = ("zero_shot", "finetune", "disco", "joint", "individual")
SETTINGS = ("homogeneous", "heterogeneous")
SAMPLINGS = ("seeded", "official")
SEEDS = (0, 1, 2)


def plan(projector: str) -> list[dict[str, object]]:
    """Seeds first, so that an interrupted campaign still has whole tables for fewer seeds;
    fine-tuning and DISCO of the main setting come before everything else.

    The references know neither clients nor rounds (zero-shot not even seeds), so they are run for one
    setting only.
    """
    runs = [
        {"method": m, "setting": s, "federation.sampling": o, "seed": seed, "adapter.projector": projector}
        for seed, s, o, m in itertools.product(SEEDS, SETTINGS, SAMPLINGS, METHODS)
        if m in ("finetune", "disco") or ((s, o) == ("homogeneous", "seeded") and (m != "zero_shot" or seed == 0))
    ]

    def late(run: dict[str, object]) -> bool:
        main_setting = (run["setting"], run["federation.sampling"]) == ("homogeneous", "seeded")
        return not (main_setting and (run["seed"] == 0 or run["method"] in ("finetune", "disco")))

    return sorted(runs, key=late)


def label(run: dict[str, object]) -> str:
    return "-".join(str(v) for v in run.values())


def execute(run: dict[str, object], output: Path) -> None:
    """One run in its own process; its summary and matrix are kept as JSON."""
    target = RESULTS / f"{label(run)}.json"
    if target.exists():
        return
    name = label(run)
    overrides = [f"{k}={v}" for k, v in run.items()]
    command = [
        sys.executable,
        "-m",
        "fcit.cli",
        "run",
        "configs/task-disco.yaml",
        *overrides,
        f"name={name}",
        f"output={output}",
        "backbone.threads=1",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    folder = max(output.glob(f"{name}-*"), key=lambda p: p.stat().st_mtime)
    results = json.loads((folder / "results.json").read_text())
    matrix = json.loads((folder / "matrix.json").read_text())
    results["scores"] = matrix["scores"]
    target.write_text(json.dumps({"run": run, **results}, indent=1) + "\n")
    print(f"{name}: Last {results['Last']:.1f}", flush=True)


def spread(values: list[float]) -> str:
    """Mean and, with several seeds, the sample standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(projector: str) -> str:
    """The results as a Markdown table: mean ± standard deviation over seeds."""
    rows = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"*-{projector}.json"))]
    lines = ["| setting | sampling | method | seeds | Last | Avg | forgetting |", "|---|---|---|---|---|---|---|"]
    for setting, sampling, method in itertools.product(SETTINGS, SAMPLINGS, METHODS):
        picked = [
            r
            for r in rows
            if r["method"] == method and (r["setting"], r["run"]["federation.sampling"]) == (setting, sampling)
        ]
        if picked:
            timeline = method not in ("zero_shot", "joint")
            avg = spread([r["Avg"] for r in picked]) if timeline else "-"
            forgetting = spread([r["forgetting"] for r in picked]) if timeline else "-"
            last = spread([r["Last"] for r in picked])
            lines.append(f"| {setting} | {sampling} | {method} | {len(picked)} | {last} | {avg} | {forgetting} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--projector", choices=["shared", "frozen"], default="shared")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if not args.table:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda run: execute(run, args.output.resolve()), plan(args.projector)))
    print(table(args.projector))


if __name__ == "__main__":
    main()
