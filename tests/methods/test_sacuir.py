"""SAC and UIR, our definition."""

import math

import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods.base import Factory, ServerState
from fcit.methods.sacuir import INQUIRIES, SACUIR, leading
from tests.helpers.toy import TinyModel, f32, session

A, B = "x.lora_A.weight", "x.lora_B.weight"
EXAMPLES = [Encoded((0, 1), ((1, 2),), ("x",))] * 2


def made(**options) -> SACUIR:
    return SACUIR(RunConfig(method={"name": "sacuir", **options}))


def test_the_main_directions_of_an_update_are_kept():
    """Squares 16, 4 and 1 of 21: the first holds 0.76, two hold 0.95."""
    update = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    for share, kept in ((0.0, 0), (0.7, 1), (0.9, 2), (1.0, 3)):
        assert leading(update, share).diagonal().tolist() == pytest.approx([4, 2, 1][:kept] + [0] * (3 - kept))


def test_updates_are_added_to_what_is_merged():
    """E_11 / 2 is merged; from there on stage 2 adds 3 E_22 + 0.1 E_12, whose main direction is merged by half."""
    method, state = made(weight=0.5, keep=0.9), ServerState()
    make = Factory(0, {A: (2, 3), B: (3, 2)})
    first = f32([1, 0, 0], [0, 0, 1]), f32([1, 0], [0, 0], [0, 0])
    second = f32([0.5, 0.1, 0], [0, 3, 0]), f32([1, 0], [0, 1], [0, 0])
    for a, b in (first, second):
        method.assign(state, [(0, "s")], {}, make)
        state.subspaces["0"] = {A: a, B: b}
        method.end_stage(state, state.stage)
        state.stage += 1
    product = state.subspaces["0"][B] @ state.subspaces["0"][A]
    assert product.diagonal().tolist() == pytest.approx([0.5, 1.5, 0], abs=0.01)


def test_answers_to_inquiries_are_held():
    """The stage began at logits (0, 0), now they are (ln 3, 0): KL = ln(1/2 / 3/4) / 2 + ln(1/2 / 1/4) / 2."""
    method, model = made(strength=2.0), TinyModel(math.log(3), 0.0)
    view = session(model, constants={"teacher-0": {"a": f32(0), "b": f32(0)}})
    method.prepare(view)
    assert len(view.notes["inquiries"]) == len(INQUIRIES)
    divergence = (math.log(2 / 3) + math.log(2)) / 2
    assert method.loss(view, EXAMPLES, torch.zeros(2)).item() == pytest.approx(math.log(3) + 2 * divergence, rel=1e-5)
    bare = session(model)
    made(strength=0.0).prepare(bare)
    assert made(strength=0.0).loss(bare, EXAMPLES, torch.zeros(2)).item() == pytest.approx(math.log(3))


def test_the_teacher_is_the_model_that_the_stage_begins_with():
    method, state, make = made(), ServerState(shared={"p": f32(1)}), Factory(0, {A: (2, 3), B: (3, 2)})
    method.assign(state, [(0, "s")], {}, make)
    begun = dict(state.subspaces["0"])
    state.subspaces["0"] = {n: t + 1 for n, t in begun.items()}
    method.assign(state, [(1, "s")], {}, make)
    (group,) = method.constants(state).items()
    assert group[0] == "teacher-0"
    assert (group[1][A] == begun[A]).all()
    assert group[1]["p"] == 1
