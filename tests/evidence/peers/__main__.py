"""Times whole programs in turn: ``python -m tests.evidence.peers [--pairs 5] [--only NAME ...]``.

Every program is a process with one thread in each of its workers, from its start to its end, as a user starts it. The
programs take turns (A B C ..., A B C ...), so that a busy machine slows all of them. The first pass fills caches of
data and features and is not counted; after each of the others the results are written, so that it can be stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fcit import config as configuration
from fcit.runs.environment import FLOWER, describe
from tests.evidence.peers import compare, plan

RESULT = Path(__file__).parents[1] / "results" / "peers.json"
RECORDS, SAMPLES = 400, 64  # of a data set: records learnt, questions answered
ENGINES = {"fcit-inline": "inline", "fcit-fork": "fork", "fcit-ray": "ray"}
PROGRAMS = (*ENGINES, "bare", "pool", "flowertune")
LIMIT = 3600  # seconds: a simulation whose nodes cannot start waits for them for ever
RAY = {"fcit-ray", "flowertune"}  # Ray's processes are not children of the program, so their CPU time is not seen


def measured(program: str, folder: Path, wanted: Mapping[str, Any]) -> compare.Measured:
    """Run a program once.

    Raises:
        RuntimeError: it failed. ValueError: it did other work than the plan's. TimeoutExpired: it did not end.
    """
    environment = {
        **os.environ,
        **FLOWER,
        "FLWR_HOME": str(folder / "flwr"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if program in ENGINES:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            settings = [f"federation.engine={ENGINES[program]}", f"output={output}"]
            arguments = ["fcit.cli", "run", str(folder / "config.yaml"), *settings]
            wall, cpu, _ = timed(program, arguments, environment)
            [run] = Path(output).glob("peers-*")
            work = of_run(run, wanted)
    else:
        wall, cpu, text = timed(program, [f"tests.evidence.peers.{program}", str(folder / "plan.json")], environment)
        work = json.loads(text.splitlines()[-1])
    compare.check(program, work, compare.expected(wanted))
    return {"wall": round(wall, 3), "cpu": None if program in RAY else round(cpu, 3), "work": work}


def timed(program: str, arguments: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a module from the start of its process to its end, and what it printed."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr[-3000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def of_run(run: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The work that a run folder shows; the server accepts no update whose steps are not those of its records."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    shares = [records for event in rounds for records in event["examples"]]
    last = rounds[-1]
    loss = sum(r * x for r, x in zip(last["examples"], last["loss"].values(), strict=True)) / sum(last["examples"])
    answers = right = asked = 0
    for number, stage in enumerate(wanted["stages"], start=1):
        right = asked = 0  # of the last stage in the end
        for name in stage["evaluate"]:
            lines = (run / "predictions" / f"stage-{number}" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            texts = [json.loads(line)["text"] for line in lines]
            right += compare.exact(texts, [question["answers"] for question in wanted["questions"][name]["asked"]])
            asked += len(texts)
        answers += asked
    steps = sum(-(-records // wanted["batch_size"]) for records in shares)
    return {"steps": steps, "records": sum(shares), "answers": answers, "loss": loss, "accuracy": right / asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes that are counted; 0: only the first, which is not")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="programs; default: all")
    parser.add_argument("--records", type=int, default=RECORDS, help="training records of a data set")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="questions of a data set")
    parser.add_argument("--result", type=Path, default=RESULT, help="file for the results")
    args = parser.parse_args()
    raw = plan.raw(args.records, args.samples)
    programs = [program for program in PROGRAMS if program in args.only]
    passes: list[dict[str, compare.Measured]] = []
    with tempfile.TemporaryDirectory(prefix="fcit-peers-") as name:
        folder = Path(name)
        wanted = plan.made(configuration.parse(raw), folder / "features.pt")
        (folder / "config.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        (folder / "plan.json").write_text(json.dumps(wanted), encoding="utf-8")
        for number in range(args.pairs + 1):
            one: dict[str, compare.Measured] = {}
            for program in programs:
                one[program] = measured(program, folder, wanted)
                wall, cpu, work = one[program]["wall"], one[program]["cpu"], one[program]["work"]
                print(f"pass {number}: {program} {wall:.2f} s, CPU {cpu or '-'} s, {json.dumps(work)}", flush=True)
            if number == 0:
                continue
            passes.append(one)
            figures = compare.summary(passes)
            result = {
                "workload": {**raw, **compare.expected(wanted)},
                "environment": describe(),
                "programs": figures,
                "passes": passes,
            }
            args.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(compare.table(figures), flush=True)


if __name__ == "__main__":
    main()
