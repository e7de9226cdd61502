"""Sequential fine-tuning: one LoRA adapter trained on all stages in turn."""

from __future__ import annotations

from fcit.methods.base import MORE_FACTORS, Method


class Finetune(Method):
    """The lower baseline, without protection of earlier tasks: theta <- fedopt(theta, weighted mean) in every round."""

    name = "finetune"
    family = "baseline"
    summary = "one LoRA adapter tuned stage after stage (lower baseline)"
    by_record = True
    factors = MORE_FACTORS
    mixes_ranks = True
