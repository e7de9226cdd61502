"""SEFE's RegLoRA: key entries, and the penalty on them."""

import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods import sefe
from fcit.methods.base import objective
from fcit.methods.sefe import SEFE, key_positions
from tests.helpers.toy import TinyModel, f32, session

A, B = "x.lora_A.weight", "x.lora_B.weight"
CPU = torch.device("cpu")
FIRST = f32([1], [3]), f32([1, -2])  # B A = 1 -2; 3 -6
SECOND = f32([5], [0]), f32([0, 1])  # B A = 0 5; 0 0


def made(**options) -> SEFE:
    return SEFE(RunConfig(method={"name": "sefe", **options}))


def test_the_largest_entries_of_every_stage_are_keys():
    positions, weights = key_positions([FIRST], 0.5, CPU)
    assert positions.T.tolist() == [[1, 0], [1, 1]]
    assert weights.tolist() == [0.5, 0.5]
    positions, weights = key_positions([FIRST, SECOND], 0.25, CPU)
    assert positions.T.tolist() == [[0, 1], [1, 1]]
    positions, weights = key_positions([FIRST, FIRST, SECOND], 0.25, CPU)
    assert weights.tolist() == pytest.approx([1 / 3, 2 / 3])  # who was important twice counts twice


def test_a_stage_that_learnt_nothing_has_no_keys():
    positions, weights = key_positions([(FIRST[0] * 0, FIRST[1])], 0.5, CPU)
    assert positions.shape == (2, 0)
    assert len(weights) == 0


@pytest.mark.parametrize("chunk", [1, 1 << 18])
def test_the_penalty_and_its_gradient(chunk, monkeypatch):
    """Keys (1, 0) and (1, 1) of one layer: CE 5 + 10 / 1 x (|b_2 a_1| + |b_2 a_2|) / 2, b = (1, 2), a = (3, -1)."""
    monkeypatch.setattr(sefe, "_CHUNK", chunk)
    method, model = made(keys=0.5, strength=10.0), TinyModel()
    model.trainable[A] = torch.nn.Parameter(torch.tensor([[3.0, -1.0]]))
    model.trainable[B] = torch.nn.Parameter(torch.tensor([[1.0], [2.0]]))
    view = session(model, constants={"frozen-0": {A: FIRST[1], B: FIRST[0]}})
    method.prepare(view)
    assert len(model.behind) == 1
    loss = objective(method, view, [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1))
    assert loss.item() == pytest.approx(5 + 10 * (6 + 2) / 2)
    loss.backward()
    assert model.trainable[B].grad.flatten().tolist() == [0, 10 * (3 + 1) / 2]
    assert model.trainable[A].grad.flatten().tolist() == [10 * 2 / 2, -10 * 2 / 2]


def test_the_first_stage_is_not_penalised():
    method, model = made(), TinyModel()
    view = session(model)
    method.prepare(view)
    assert objective(method, view, [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1)).item() == pytest.approx(5)
