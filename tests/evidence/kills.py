"""kill -9 at random moments, then `fcit resume`: ``python -m tests.evidence.kills`` (part of ``make evidence``).

Twelve moments for each of fine-tuning, DISCO, FedAdam and two methods whose clients remember. A moment is a
seeded share of the uninterrupted run's time, from the start of the process to its end, so it may fall into
imports, a round, aggregation, a checkpoint or evaluation; where it fell is recorded. Results go to
``tests/evidence/results/kills.json`` one by one: the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from fcit.io.files import write_json
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from tests.helpers.runs import SMALL, bits

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "kills.json"
MOMENTS = 12
CASES = {
    "finetune": {"method": "finetune"},
    "disco": {"method": "disco"},
    "fedadam": {"method": "disco", "fedopt": "fedadam"},
    "replay": {"method": "replay"},
    "scaffold": {"method": "finetune", "fedopt": "scaffold"},
}


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fcit.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*arguments: str) -> None:
    process = command(*arguments)
    _, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"fcit {' '.join(arguments)} ended with {process.returncode}: {err[-2000:]}")


def settings(case: str, folder: Path) -> Path:
    """The case's configuration: few clients, so that those that remember come back."""
    file = folder / f"{case}.yaml"
    raw = {**SMALL, **CASES[case], "name": case, "output": str(folder)}
    raw |= {"data": {"max_records": 600}, "evaluation": {"samples": 16}}
    raw["federation"] = {"rounds": 2, "clients": 24, "clients_per_round": 3}
    file.write_text(yaml.safe_dump(raw))
    return file


def reference(case: str, folder: Path) -> tuple[Path, float]:
    """The run nobody interrupts and how long it takes, made once."""
    run, note = folder / f"{case}-1", folder / f"{case}.seconds"
    if not note.exists():
        shutil.rmtree(run, ignore_errors=True)
        begin = time.monotonic()
        finish("run", str(settings(case, folder)))
        note.write_text(str(time.monotonic() - begin))
    return run, float(note.read_text())


def standing(run: Path) -> str:
    """Where a killed run stands: what it said last, and which updates wait."""
    if not (run / "config.yaml").exists():
        return "before the run"
    events = list(RunDir(run).read_events())
    waiting = len(list((run / "spill").glob("*.json")))
    last = {k: v for k, v in events[-1].items() if k in ("event", "stage", "round", "dataset")} if events else "nothing"
    return f"after {last}, {waiting} updates waiting"


def kill(case: str, number: int, folder: Path, whole: Path, seconds: float) -> dict[str, Any]:
    """One kill and what became of it."""
    share = random.Random(f"{case}/{number}").uniform(0.02, 0.98)
    place = folder / f"{case}-killed-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    config, run = settings(case, place), place / f"{case}-1"
    process = command("run", str(config))
    try:
        process.communicate(timeout=share * seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    killed = process.returncode == -signal.SIGKILL
    where = standing(run)
    finish(*(("resume", str(run)) if (run / "config.yaml").exists() else ("run", str(config))))
    found = Run(run)
    result = {
        "case": case,
        "number": number,
        "share": round(share, 4),
        "killed": killed,
        "where": where,
        "reused": sum(len(event["clients"]) for event in found.of("reused")),
        "same": bits(run) == bits(whole),
        "rounds_once": len({(e["stage"], e["round"]) for e in found.of("round")}) == len(found.of("round")),
    }
    shutil.rmtree(place)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "evidence-kills")
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this one (can be repeated)")
    parser.add_argument("--moments", type=int, default=MOMENTS)
    args = parser.parse_args()
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.exists() else []
    there = {(row["case"], row["number"]) for row in done}
    for case in args.case or CASES:
        for number in range(args.moments):
            if (case, number) in there:
                continue
            whole, seconds = reference(case, folder)
            done.append(kill(case, number, folder, whole, seconds))
            print(done[-1], flush=True)
            write_json(RESULT, done)
    bad = [row for row in done if not (row["same"] and row["rounds_once"])]
    print(f"{len(done)} runs, {sum(row['killed'] for row in done)} killed, {len(bad)} with other bits")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
