"""What training and answering could gain: variants of one step on one model, each timed, checked and bounded.

    python -m tests.perf.levers training --size 7b --device cuda --seconds 300 --json training.json
    python -m tests.perf.levers answering --size 7b --device cuda --seconds 300 --json answering.json

The model is that of tests/perf/gpu.py: the published shape of LLaVA-1.5-7B with random weights. A variant changes how
the step is computed, in this process and while it is measured; what runs use stays as it is. Each has its own limit,
and the JSON file is written before and after it, so that a run that is stopped leaves what it measured. A variant that
fails, exceeds its limit or finds too little of --seconds left says so in its row; where memory runs out in training,
the batch is halved. At the end the rows are printed as a table, as in tests/perf/results/README.md. `--size toy` tries
the code on a CPU within minutes, most of them of compilers; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fcit.doctor.devices import device_of
from fcit.models.backbone import versions
from tests.perf import answering_levers, gpu, training_levers
from tests.perf.answering_levers import Decoding
from tests.perf.training_levers import TrainingStep
from tests.perf.variants import run, table

#: What can be measured: the model at work, its variants and the columns of their table.
LEVERS: dict[str, tuple[Any, Any, Any]] = {
    "training": (TrainingStep, training_levers.variants, training_levers.COLUMNS),
    "answering": (Decoding, answering_levers.variants, answering_levers.COLUMNS),
}


def measured(
    what: str, size: str, device: str, seconds: float, file: Path | None = None, only: list[str] | None = None
) -> dict[str, Any]:
    """Build the model, measure the variants and return what the JSON file holds."""
    bench, variants, _ = LEVERS[what]
    chosen = [v for v in variants(size) if not only or v.name in only]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kit = gpu.build(size, device, Path(folder))
    built = time.perf_counter() - begin
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": what,
        "size": size,
        "device": device_of(device, None, torch.get_num_threads()).name,
        "versions": versions(kit[0].device),
        "build_seconds": built,
        "rows": [],
    }
    run(chosen, bench(kit, size), report, file, seconds - built)
    return report


def main(argv: list[str] | None = None) -> int:
    """Measure, save, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=LEVERS, help="a whole optimiser step, or greedy answers with routed subspaces")
    parser.add_argument(
        "--size", choices=gpu.SIZES, default="toy", help="7b: up to 49 GB of GPU memory to answer, 100 to train"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--seconds", type=float, default=300, help="time for everything; what comes later is skipped")
    parser.add_argument("--json", type=Path, help="write rows here, before and after every variant")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="this variant (repeatable); see --list")
    parser.add_argument("--list", action="store_true", help="print the variants and what they are, measure nothing")
    args = parser.parse_args(argv)
    _, variants, columns = LEVERS[args.what]
    names = {v.name: v.means for v in variants(args.size)}
    if args.list:
        print("\n".join(f"{name}: {means}" for name, means in names.items()))
        return 0
    if unknown := sorted(set(args.only or ()) - names.keys()):
        parser.error(f"--only {unknown[0]!r}: no such variant of {args.what}; --list prints their names")
    report = measured(args.what, args.size, args.device, args.seconds, args.json, args.only)
    print(table(report["rows"], columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
