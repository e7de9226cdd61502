"""O-LoRA and M-LoRA: a subspace per stage."""

import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods.base import Factory, ServerState, objective
from fcit.methods.mlora import MLoRA
from fcit.methods.olora import OLoRA
from tests.helpers.toy import TinyModel, f32, session

A = "x.lora_A.weight"


def make(kind, **options):
    return kind(RunConfig(method={"name": kind.name, **options}))


@pytest.mark.parametrize("kind", [OLoRA, MLoRA])
def test_a_stage_opens_a_subspace_and_moves_everybody_there(kind):
    method, state, factory = make(kind), ServerState(), Factory(0, {A: (1, 2)})
    pairs = [(1, "s"), (2, "t")]
    method.assign(state, pairs, {}, factory)
    state.stage = 1
    method.assign(state, pairs[:1], {}, factory)  # a client may come back with records it had before
    assert list(state.subspaces) == ["0", "1"]
    assert state.assigned == {(1, "s"): "1", (2, "t"): "0"}


def test_olora_keeps_earlier_pairs_behind_and_sends_each_once():
    method, factory = make(OLoRA), Factory(0, {A: (1, 2)})
    state = ServerState({str(i): factory(str(i)) for i in range(11)}, stage=10)
    constants = method.constants(state)
    assert set(constants) == {f"frozen-{i}" for i in range(10)}
    model = TinyModel()
    model.trainable[A] = torch.nn.Parameter(torch.zeros(1, 2))
    method.prepare(session(model, constants=constants))
    assert all(np.array_equal(model.behind[i][A], state.subspaces[str(i)][A]) for i in range(10))  # 10 after 9


def test_olora_penalty():
    """A_t = (1, 2); frozen (3, 0) and (0, -4): |3| + |-8| = 11; times 0.5, plus CE 5. The frozen ones stay."""
    method, model = make(OLoRA), TinyModel()
    model.trainable[A] = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
    frozen = {"frozen-0": {A: f32([3, 0])}, "frozen-1": {A: f32([0, -4])}}
    view = session(model, constants=frozen)
    method.prepare(view)
    loss = objective(method, view, [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1))
    assert loss.item() == pytest.approx(5 + 0.5 * 11)
    loss.backward()
    assert model.trainable[A].grad.tolist() == [[0.5 * 3, 0.5 * 4]]  # d|-4 * 2|/d2 = +4


def test_olora_decay():
    method, model = make(OLoRA, decay=0.1), TinyModel()
    model.trainable[A] = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
    assert objective(
        method, session(model), [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1)
    ).item() == pytest.approx(5.5)


def test_merges():
    features = np.zeros((2, 3), np.float32)
    assert make(OLoRA).route(["0", "1"], ({}, {}), features).tolist() == [[1, 1], [1, 1]]
    assert make(MLoRA).route(["0", "1"], ({}, {}), features).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert make(MLoRA, merge="sum").route(["0", "1"], ({}, {}), features).tolist() == [[1, 1], [1, 1]]
    assert MLoRA.dagger
    assert not OLoRA.dagger
