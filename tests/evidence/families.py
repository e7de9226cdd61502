"""How far every family of models is from transformers' own forward: the table in docs/benchmark.md.

Small models with random weights of the real classes in float32 on the CPU; conversations of two turns about one image,
two images and none, of odd aspect ratios, padded to one batch. No download.

    python -m tests.evidence.families
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fcit import registry
from fcit.contracts.families import FamilyCase, logits


def row(kind: str, folder: Path) -> list[str]:
    """What the table says of a family."""
    case = FamilyCase(kind, folder)
    difference = (logits(case.backbone, case.examples, case.features) - case.wanted).abs().max()
    gradients = 0.0
    for n in range(len(case.examples) if case.family.projector else 0):
        found, whole = case.projector_gradients(n)
        gradients = max(gradients, *(float((found[name] - whole[name]).abs().max()) for name in whole))
    texts = [case.generated(n) for n in range(len(case.questions))]
    same = 0
    for decoder in ("auto", "transformers"):
        with case.backbone.answering.by(decoder):
            answers = case.backbone.generate(case.questions, case.features, 8)
        same += sum(answer == text for answer, text in zip(answers, texts, strict=True))
    numbers = [f"{float(difference):.1e}", f"{float(case.wanted.abs().max()):.1f}"]
    numbers.append(f"{gradients:.1e}" if case.family.projector else "frozen")
    return [f"`{kind}`", *numbers, f"{same} of {2 * len(texts)}"]


def main() -> None:
    """Print the table."""
    print("| family | logits | largest logit | gradient of the projector | equal answers |")
    print("|---|---|---|---|---|")
    for kind in sorted(registry.MODELS):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(row(kind, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
