"""The demo's four stages on two families of models through Ray, and the same bits without it.

``python -m tests.evidence.two_families`` writes ``results/two_families.json``. The models are small, of transformers'
real classes, with random weights, so scores say nothing; what is shown is that stages, routing, evaluation and report
run on images cut into tiles and on images at their own size with several injection points as they do on the built-in
model, and that two Ray workers come to the bits of one process. The rendered pictures are all of one size, so they do
not show unlike ones in a batch, which tests/models/test_families.py does. ``--keep FOLDER`` leaves
runs and report pages there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from fcit import registry
from fcit.cli import main as command
from fcit.data.benchmark import open_benchmark
from fcit.doctor.images import look
from fcit.io.files import write_text
from fcit.models.families.small import Small, save
from fcit.models.places import TINY
from fcit.runs.environment import versions
from fcit.runs.reader import Run
from tests.helpers.runs import bits

RESULT = Path(__file__).parent / "results" / "two_families.json"
CONFIG = Path(__file__).parents[2] / "configs" / "demo-disco.yaml"
KINDS = ("qwen3_vl", "smolvlm")
SHORT = (
    "federation.rounds=1",
    "federation.clients_per_round=2",
    "evaluation.samples=8",
    "evaluation.max_new_tokens=4",
)


def run(kind: str, small: Small, engine: str, folder: Path, model: str) -> Path:
    """A run's folder."""
    options = {"model": model, "identity": TINY / "clip", "feature_cache": "off", **small.options}
    settings = [f"backbone.{key}={value}" for key, value in options.items()]
    where = folder / engine
    name = [f"output={where}", f"name={kind}", f"federation.engine={engine}", f"adapter.targets={small.targets}"]
    assert command(["run", str(CONFIG), *SHORT, *settings, *name]) == 0
    return next(where.glob(f"{kind}-*"))


def row(kind: str, folder: Path) -> dict[str, Any]:
    """What the result says of a family."""
    small = registry.resolve("model", kind).small()
    model = save(folder / "models" / kind, small)
    paths = [run(kind, small, engine, folder, model) for engine in ("ray", "inline")]
    read = Run(paths[0])
    images = look(open_benchmark(read.config), read.config)
    assert images is not None
    losses = [value for event in read.of("round") for value in event["loss"].values()]
    return {
        "stages": len(read.of("stage")),
        "subspaces": len(read.subspaces),
        "tokens_of_an_image": [images.least, round(images.mean), images.most],
        "loss_of_rounds": [round(min(losses), 3), round(max(losses), 3)],
        "questions": sum(len(read.predictions(name)) for name in read.matrix.datasets),
        "report": (paths[0] / "report.html").is_file(),
        "same_bits_as_inline": bits(paths[0]) == bits(paths[1]),
    }


def main() -> None:
    """Run, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for runs and report pages (default: a scratch folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        rows = {kind: row(kind, folder / kind) for kind in KINDS}
    result = {"configuration": "configs/demo-disco.yaml", "overrides": SHORT, "families": rows, "versions": versions()}
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
