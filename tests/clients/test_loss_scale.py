"""A loss is scaled for float16 and for nothing else; a step that overflows is left out and counted."""

import pytest
import torch

from clients.worker.loss_scale import FIRST, LossScale

CPU = torch.device("cpu")
TINY = 2.0**-28  # half of the smallest number that float16 has, which is 2^-24, is rounded to zero


def step(dtype: torch.dtype, factor: float) -> tuple[torch.nn.Parameter, LossScale]:
    """A step of rate 1 on ``loss = factor * x``, whose gradient passes through float16."""
    x = torch.nn.Parameter(torch.zeros(1))
    scale, optimizer = LossScale(CPU, dtype), torch.optim.SGD([x], lr=1.0)
    narrow = x.to(torch.float16)  # its backward pass rounds the gradient to float16
    scale.up(narrow.float().sum() * factor).backward()
    scale.down(optimizer)
    scale.step(optimizer)
    return x, scale


def test_a_small_gradient_vanishes_without():
    assert step(torch.float32, TINY)[0].item() == 0.0


def test_a_small_gradient_survives():
    assert step(torch.float16, TINY)[0].item() == -TINY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_formats_are_left_alone(dtype):
    loss = torch.ones(1)
    assert LossScale(CPU, dtype).up(loss) is loss


def test_a_step_that_overflows_is_left_out_and_counted():
    x, scale = step(torch.float16, 2.0**15)  # times 2^10 is more than float16 holds
    assert x.item() == 0.0
    assert scale.skipped == 1


def test_the_scale_is_halved_after_it():
    _, scale = step(torch.float16, 2.0**15)
    assert scale.up(torch.ones(1)).item() == FIRST / 2


def test_a_step_that_fits_is_not_counted():
    assert step(torch.float16, 1.0)[1].skipped == 0
