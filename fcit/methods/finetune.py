"""Plain sequential fine-tuning: one LoRA adapter carried from stage to stage."""

from __future__ import annotations

from fcit.methods.base import Method


class Finetune(Method):
    """The lower baseline: nothing protects earlier tasks."""

    name = "finetune"
    summary = "one LoRA adapter tuned stage after stage (lower baseline)"
