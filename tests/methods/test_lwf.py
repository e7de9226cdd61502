import math

import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods.base import ServerState
from fcit.methods.lwf import LwF
from tests.helpers.toy import TinyModel, f32, session

EXAMPLES = [Encoded((0, 1), ((1, 2),), ("x",))] * 2


def lwf(**options) -> LwF:
    return LwF(RunConfig(method={"name": "lwf", **options}))


def test_first_stage_has_no_teacher():
    method, state = lwf(), ServerState({"0": {"a": f32(1)}})
    assert method.constants(state) == {}
    view = session(TinyModel(0.0, 0.0))
    method.prepare(view)
    assert method.loss(view, EXAMPLES, torch.zeros(2)).item() == pytest.approx(math.log(2))


def test_the_teacher_is_the_model_of_the_stage_before():
    method, state = lwf(), ServerState({"0": {"a": f32(1)}}, {"p": f32(2)})
    method.end_stage(state, 0)
    assert method.constants(state) == {"teacher-0": {"a": f32(1), "p": f32(2)}}
    method.end_stage(state, 1)
    assert list(method.constants(state)) == ["teacher-1"]


def test_distillation():
    """Teacher logits (2 ln 3, 0) at T = 2: q = (3/4, 1/4). A student at (0, 0): p = (1/2, 1/2), so CE = KD = ln 2."""
    method = lwf(strength=0.5, temperature=2)
    view = session(TinyModel(0.0, 0.0), constants={"teacher-0": {"a": f32(2 * math.log(3)), "b": f32(0)}})
    method.prepare(view)
    loss = method.loss(view, EXAMPLES, torch.zeros(2))
    assert loss.item() == pytest.approx(1.5 * math.log(2))
    loss.backward()
    # dKD/da = (p_a - q_a) / T = (1/2 - 3/4) / 2; dCE/da = p_a - 1 = -1/2 (the wanted word is the first)
    assert view.adapters.trainable["a"].grad.item() == pytest.approx(-0.5 + 0.5 * (0.5 - 0.75) / 2)
