"""Writes the model card of ``fcit-tiny``: ``python -m tests.evidence.card``.

Scores come from ordinary runs of the references; nothing here is tuned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from fcit import config
from fcit.data.mini.questions import MAKERS
from fcit.data.spec import read_spec
from fcit.methods.disco import softmax_mix
from fcit.methods.knowledge_cache import cosine
from fcit.models.backbone import TINY, Backbone

METHODS = ("zero_shot", "individual", "joint")


def others(folder: Path) -> Path:
    """A benchmark of the datasets that ``fcit-mini-task`` leaves out."""
    shown = set(read_spec("fcit-mini-task").datasets)
    spec = read_spec("fcit-mini-all").model_dump(exclude_none=True)
    spec["name"] = "fcit-mini-others"
    spec["tasks"] = [task for task in spec["tasks"] if not shown & set(task)]
    spec["datasets"] = {n: d for n, d in spec["datasets"].items() if n not in shown}
    spec.pop("heterogeneous", None)
    spec.pop("homogeneous", None)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "others.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def scores(output: Path, given: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Last row of each reference's matrices: the eight task datasets together, and the four others together.

    ``given`` names finished runs on ``fcit-mini-task`` by method.
    """
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for part, benchmark in (("task", "fcit-mini-task"), ("others", str(others(output)))):
            name = f"card-{part}-{method}"
            folder = given[method] if part == "task" and method in given else output / f"{name}-1"
            if not (folder / "results.json").exists():
                command = [
                    sys.executable,
                    "-m",
                    "fcit.cli",
                    "run",
                    "configs/task-disco.yaml",
                    f"benchmark={benchmark}",
                    f"method={method}",
                    f"name={name}",
                    f"output={output}",
                ]
                subprocess.run(command, check=True)
            found.setdefault(method, {}).update(json.loads((folder / "matrix.json").read_text())["scores"][-1])
    return found


def routing() -> list[str]:
    """Per dataset: margin, own weight, top-1 and the least similar client of eight records."""
    backbone = Backbone(config.Backbone(feature_cache="off"))

    def features(name: str, seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return backbone.identity.text([MAKERS[name](rng).question for _ in range(count)])

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
    rows = [f"| {n} | " + " | ".join(f"{found[m][n]:.1f}" for m in METHODS) + " |" for n in names]
    tasks = list(read_spec("fcit-mini-task").datasets)

    def means(chosen: list[str]) -> str:
        return " | ".join(f"**{sum(found[m][n] for n in chosen) / len(chosen):.1f}**" for m in METHODS)

    hashes = [
        f"- `{p.relative_to(TINY)}` {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in sorted(TINY.rglob("*.safetensors"))
    ]
    return "\n".join(
        [
            "# fcit-tiny",
            "",
            "A LLaVA (CLIP vision tower, two-layer projector, six-layer Llama decoder, 1.8 M parameters) and a CLIP "
            "pair",
            "(0.65 M) for identity tokens, float32, made for the mini world of this package: 64-pixel images of 4 x 4",
            "cells. It is good for nothing else. Data: synthetic instructions of `fcit/data/mini/skills/` over images",
            "whose layouts no mini dataset uses; none of the datasets' questions or answer formats.",
            "",
            history.strip(),
            "",
            "## Scores on the test sets",
            "",
            "One run each of `configs/task-disco.yaml` with the reference as method (rank 8, lr 3e-3, batch 16, shared",
            "projector), seed 0; individual and joint see as many samples as a federated run would. Joint: the eight",
            "datasets of fcit-mini-task together, the last four together.",
            "",
            "| dataset | zero-shot | individual | joint |",
            "|---|---|---|---|",
            *rows,
            f"| **mean of the {len(tasks)} of fcit-mini-task** | {means(tasks)} |",
            f"| **mean of all {len(names)}** | {means(names)} |",
            "",
            "## Routing by text",
            "",
            "Tokens of all twelve datasets from 300 instructions each; 304 others are routed. Margin: median of",
            "cosine to the own token minus the best other; weight: median own weight at temperature 0.05; clients: "
            "least",
            "cosine of the mean of eight instructions to the own token.",
            "",
            "| dataset | margin | weight | top-1 % | clients |",
            "|---|---|---|---|---|",
            *routes,
            "",
            "## Files (SHA-256)",
            "",
            *hashes,
            "",
        ]
    )


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
