"""What a batch of answers costs with ever more subspaces, all of them mixed or only those that matter.

    python -m tests.perf.subspaces --json tests/perf/results/subspaces.json

The built-in model answers questions of one task: two subspaces have nearly all of the weight and the others share one
percent. Times are CPU seconds of this process, the least of several rounds in which every variant takes its turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcit import config as configuration
from fcit import seeding
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone, versions

COUNTS, NEGLIGIBLE = (1, 8, 32, 64), 0.005
BATCH, NEW, ROUNDS = 16, 16, 5


def mix(count: int, batch: int) -> np.ndarray:
    """Weights ``(batch, count)``: 0.9 and 0.09 for two subspaces, 0.01 for all others together."""
    if count == 1:
        return np.ones((batch, 1), dtype=np.float32)
    weights = np.full((batch, count), 0.01 / max(1, count - 2), dtype=np.float32)
    weights[:, 0], weights[:, count // 2] = 0.9, 0.09
    return weights


def measured(counts: tuple[int, ...] = COUNTS, batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds of a batch by number of subspaces, and whether the answers are the same."""
    config = configuration.parse({"backbone": {"feature_cache": "off", "threads": 1}})
    backbone = Backbone(config.backbone)
    adapters = Adapters(backbone, config.adapter)
    backbone.model.generation_config.eos_token_id = None  # every answer has its full length
    rng = seeding.generator(0, "perf-subspaces")
    shapes = {n: tuple(p.shape) for n, p in adapters.trainable.items() if ".lora_" in n}
    examples = [backbone.encode(f"What is in picture {n}?", None, "") for n in range(batch)]
    features = torch.from_numpy(rng.normal(0, 1, (batch, *backbone.family.shape)).astype(np.float32))
    rows = []
    for count in counts:
        subspaces = [{n: rng.normal(0, 0.01, s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]
        adapters.load_mixture(subspaces, adapters.base_projector())
        weights, seconds, texts = mix(count, batch), {0.0: [], NEGLIGIBLE: []}, {}
        for _ in range(rounds):
            for negligible, times in seconds.items():
                begin = time.process_time()
                with adapters.mixed(weights, negligible):
                    texts[negligible] = backbone.generate(examples, features, NEW)
                times.append(time.process_time() - begin)
        same = sum(a == b for a, b in zip(*texts.values(), strict=True)) / batch
        every, some = (1e3 * min(times) for times in seconds.values())
        rows.append({"subspaces": count, "ms": round(every, 1), "ms_negligible": round(some, 1), "equal": same})
    return {"batch": batch, "new": NEW, "negligible": NEGLIGIBLE, "versions": versions(), "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    text = json.dumps(measured(), indent=1)
    if args.json:
        args.json.write_text(f"{text}\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
