"""Writes the model card of ``fcit-tiny``: ``python -m tests.evidence.card``.

Scores come from ordinary runs of the references on ``fcit-mini-all``; nothing here trains or tunes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fcit import config
from fcit.data.mini.questions import MAKERS
from fcit.methods.disco import softmax_mix
from fcit.methods.knowledge_cache import cosine
from fcit.models.backbone import TINY, Backbone

METHODS = ("zero_shot", "individual", "joint")


def scores(output: Path, given: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Last row of each reference's matrix: of the runs given, or of new runs on ``fcit-mini-all``."""
    found = {}
    for method in METHODS:
        folder = given.get(method, output / f"card-{method}-1")
        if not (folder / "results.json").exists():
            command = [sys.executable, "-m", "fcit.cli", "run", "configs/task-disco.yaml", "benchmark=fcit-mini-all",
                       f"method={method}", f"name=card-{method}", f"output={output}"]  # fmt: skip
            subprocess.run(command, check=True)
        found[method] = json.loads((folder / "matrix.json").read_text())["scores"][-1]
    return found


def routing() -> list[str]:
    """Per dataset: margin, own weight, top-1 and the least similar client of eight records."""
    backbone = Backbone(config.Backbone(feature_cache="off"))

    def features(name: str, seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return backbone.identity_features([MAKERS[name](rng).question for _ in range(count)])

    names = [name for name in MAKERS if not name.startswith("alike")]
    tokens = np.stack([features(name, 1, 300).mean(axis=0) for name in names])
    lines = []
    for i, name in enumerate(names):
        questions = features(name, 2, 304)
        similarity = cosine(questions, tokens)
        others = np.delete(similarity, i, axis=1).max(axis=1)
        weight = softmax_mix(similarity, 0.05)[:, i]
        clients = questions.reshape(38, 8, -1).mean(axis=1)
        lines.append(
            f"| {name} | {np.median(similarity[:, i] - others):.2f} | {np.median(weight):.3f} | "
            f"{100 * (similarity[:, i] > others).mean():.1f} | {cosine(clients, tokens[i : i + 1]).min():.3f} |"
        )
    return lines


def render(found: dict[str, dict[str, float]], routes: list[str], history: str) -> str:
    """The card as Markdown."""
    names = list(found["zero_shot"])
    shared = [n for n in names if all(n in found[m] for m in METHODS)]

    def cell(method: str, name: str) -> str:
        return f"{found[method][name]:.1f}" if name in found[method] else "not measured"

    rows = [f"| {n} | " + " | ".join(cell(m, n) for m in METHODS) + " |" for n in names]
    mean = {m: sum(found[m][n] for n in shared) / len(shared) for m in METHODS}
    hashes = [
        f"- `{p.relative_to(TINY)}` {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in sorted(TINY.rglob("*.safetensors"))
    ]
    return "\n".join([
        "# fcit-tiny", "",
        "A LLaVA (CLIP vision tower, two-layer projector, six-layer Llama decoder, 1.8 M parameters) and a CLIP pair",
        "(0.65 M) for identity tokens, float32, made for the mini world of this package: 64-pixel images of 4 x 4",
        "cells. It is good for nothing else. Data: synthetic instructions of `fcit/models/tiny/corpus.py` over images",
        "whose layouts no mini dataset uses; none of the datasets' questions or answer formats.", "",
        history.strip(), "",
        "## Scores on the test sets", "",
        "One run each of `configs/task-disco.yaml` with the reference as method (rank 8, lr 3e-3, batch 16, shared",
        "projector), seed 0; individual and joint see as many samples as a federated run would.", "",
        "| dataset | zero-shot | individual | joint |", "|---|---|---|---|", *rows,
        f"| **mean of {len(shared)}** | " + " | ".join(f"**{mean[m]:.1f}**" for m in METHODS) + " |", "",
        "## Routing by text", "",
        "Tokens of all twelve datasets from 300 instructions each; 304 others are routed. Margin: median of",
        "cosine to the own token minus the best other; weight: median own weight at temperature 0.05; clients: least",
        "cosine of the mean of eight instructions to the own token.", "",
        "| dataset | margin | weight | top-1 % | clients |", "|---|---|---|---|---|", *routes, "",
        "## Files (SHA-256)", "", *hashes, "",
    ])  # fmt: skip


def main() -> None:
    """Run the references where they have not been run, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/card"))
    parser.add_argument("--given", nargs="*", default=[], metavar="METHOD=RUN", help="finished runs to read")
    args = parser.parse_args()
    given = {method: Path(path) for method, path in (pair.split("=") for pair in args.given)}
    history = (TINY / "HISTORY.md").read_text(encoding="utf-8")
    (TINY / "MODEL_CARD.md").write_text(render(scores(args.output, given), routing(), history), encoding="utf-8")


if __name__ == "__main__":
    main()
