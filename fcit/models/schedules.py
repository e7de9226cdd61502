"""Learning-rate schedules as in the library of the published code."""

from __future__ import annotations

import math

import torch
from transformers import get_cosine_schedule_with_warmup


def trainer_multipliers(warmup_ratio: float, steps: int) -> list[float]:
    """Multipliers of the learning rate by the official trainer, one for each of ``steps`` optimiser steps.

    The cosine schedule of Hugging Face's ``Trainer``, with ceil(warmup_ratio * steps) steps of warm-up: step i,
    counted from 0, has the multiplier i / warm-up, so that the first is 0. Six steps with a ratio of 0.03 have
    0, 1, 0.905, 0.655, 0.345 and 0.095; a single step has 0 and changes nothing.

    Source: the published scripts of arXiv 2503.12897 name ``cosine`` and ``warmup_ratio 0.03`` for that trainer.
    """
    # The library attaches schedules to an optimiser; the rule itself is the function of the step it holds.
    anchor = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(anchor, math.ceil(warmup_ratio * steps), steps)
    return [float(schedule.lr_lambdas[0](step)) for step in range(steps)]
