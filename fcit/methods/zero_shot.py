"""Reference: the backbone without training."""

from __future__ import annotations

from fcit.methods.base import Method


class ZeroShot(Method):
    """No training; every data set is evaluated once."""

    name = "zero_shot"
    family = "baseline"
    summary = "the backbone without any tuning (reference)"
    group = "reference"
    trains = False
    whole_rank = "it trains nothing"
    last_stage_only = True
