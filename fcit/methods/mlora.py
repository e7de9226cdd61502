"""M-LoRA: one LoRA per stage, trained separately and merged afterwards.

The name is listed in the tables of "Federated Continual Instruction Tuning" (arXiv 2503.12897) without a
reference that we could identify. This is **our definition**; results are marked with a dagger.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fcit.config import Section
from fcit.methods.base import INVARIANTS, MORE_FACTORS
from fcit.methods.per_stage import PerStage


class MLoRA(PerStage):
    """Each stage trains a new LoRA on the backbone alone; inference uses their mean or sum.

    Delta W = c s sum_{i<=t} B_i A_i,   c = 1 / t (mean: model averaging) or 1 (sum: task arithmetic)

    The merge is exact: factors are stacked along the rank, A's and B's are never added.
    """

    class Options(Section):
        """Keys under ``method:``."""

        merge: Literal["mean", "sum"] = Field(
            "mean", description="mean: model averaging; sum: task arithmetic (both our definition); our benches: sum"
        )

    name = "mlora"
    family = "merging"
    summary = "a LoRA per stage, trained alone and merged exactly (our definition)"
    by_record = True
    factors = MORE_FACTORS
    mixes_ranks = True
    answers = "Answers come from all subspaces merged; one alone is one term of the merge."
    dagger = True
    invariants = INVARIANTS - {"mix-sums-to-one"}

    def route(self, names, knowledge, features: np.ndarray) -> np.ndarray:
        """Weight c for every subspace and question."""
        weight = 1.0 if self.options.merge == "sum" else 1.0 / max(len(names), 1)
        return np.full((len(features), len(names)), weight, dtype=np.float32)
