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
from tests.helpers.generic_models import FITTING


def row(kind: str, folder: Path, model: str = "") -> list[str]:
    """What the table says of a family, or of a model without one."""
    case = FamilyCase(kind, folder, FITTING[model] if model else None)
    difference = (logits(case.backbone, case.examples, case.features) - case.wanted).abs().max()
    gradients = 0.0
    for n in range(len(case.examples) if case.family.projector else 0):
        found, whole = case.projector_gradients(n)
        gradients = max(gradients, *(float((found[name] - whole[name]).abs().max()) for name in whole))
    texts = [case.generated(n) for n in range(len(case.questions))]
    same = 0
    decoders = ("auto", "transformers") if case.backbone.answering.generates else ("auto",)
    for decoder in decoders:
        with case.backbone.answering.by(decoder):
            answers = case.backbone.generate(case.questions, case.features, 8)
        same += sum(answer == text for answer, text in zip(answers, texts, strict=True))
    numbers = [f"{float(difference):.1e}", f"{float(case.wanted.abs().max()):.1f}"]
    numbers.append(f"{gradients:.1e}" if case.family.projector else "frozen")
    return [f"`{kind}`" + (f" ({model})" if model else ""), *numbers, f"{same} of {len(decoders) * len(texts)}"]


def main() -> None:
    """Print the table."""
    print("| family | logits | largest logit | gradient of the projector | equal answers |")
    print("|---|---|---|---|---|")
    models = [(kind, "") for kind in sorted(registry.MODELS)] + [("generic", model) for model in FITTING]
    for kind, model in models:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(row(kind, Path(folder), model))} |", flush=True)


if __name__ == "__main__":
    main()
