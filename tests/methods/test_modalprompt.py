"""ModalPrompt: prototypes, the loss that draws them to the features, and which prompts a question gets."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.methods.base import Factory, ServerState
from fcit.methods.modalprompt import ModalPrompt, best_last
from fcit.models.layout import MAP, PROMPTS
from tests.helpers.toy import TinyModel, f32, session

EXAMPLES = [Encoded((0, 1), ((1, 2),), ("x",))] * 2
#: Two tokens of two numbers; the network keeps tokens as they are, but for SiLU.
EYE = {f"{MAP}0.weight": np.eye(2, dtype=np.float32), f"{MAP}0.bias": f32(0, 0)}
EYE |= {f"{MAP}2.weight": np.eye(2, dtype=np.float32), f"{MAP}2.bias": f32(0, 0)}


def made(**options) -> ModalPrompt:
    return ModalPrompt(RunConfig(method={"name": "modalprompt", "length": 2, **options}))


def silu(value: float) -> float:
    return value / (1 + np.exp(-value))


def after(*prompts, choose: int = 2) -> tuple[ModalPrompt, ServerState]:
    """Stages that trained these prompts."""
    method, state = made(choose=choose), ServerState()
    make = Factory(0, {name: (1, 2, 2) if name == PROMPTS else EYE[name].shape for name in (PROMPTS, *EYE)})
    for number, prompt in enumerate(prompts):
        state.stage = number
        method.assign(state, [(0, "s")], {}, make)
        state.subspaces[str(number)] = {PROMPTS: f32([prompt, prompt]), **EYE}
        method.end_stage(state, number)
    return method, state


def test_a_stage_leaves_its_prompt_and_a_prototype():
    _, state = after([1, 3])
    assert state.subspaces["0"].keys() == {PROMPTS}
    assert state.memory["prototypes"]["0"].tolist() == pytest.approx([silu(1), silu(3)])


def test_the_loss_draws_the_prototype_to_the_features():
    """c = (silu(2), 0), records at 0 and 90 degrees: 5 (CE of the toy) + 0.5 x 2 (1 - 1 / 2)."""
    model = TinyModel()
    tensors = {PROMPTS: f32([[2, 0], [2, 0]]), **EYE}
    model.trainable |= {n: torch.nn.Parameter(torch.from_numpy(t)) for n, t in tensors.items()}
    view = session(model, identity=f32([1, 0], [0, 1]), batch=[0, 1])
    method = made(pull=0.5)
    method.prepare(view)
    loss = method.loss(view, EXAMPLES, torch.zeros(2))
    assert loss.item() == pytest.approx(5 + 0.5 * 2 * 0.5)
    loss.backward()
    assert model.trainable[f"{MAP}2.bias"].grad.abs().sum() > 0


def test_earlier_prompts_stand_in_front_in_training():
    method, state = after([9, 0], [0, 7])
    state.stage = 2
    model, seen = TinyModel(), []
    tensors = {PROMPTS: f32([[1, 1], [2, 2]]), **EYE}
    model.trainable |= {n: torch.nn.Parameter(torch.from_numpy(t)) for n, t in tensors.items()}
    plain = model.loss
    model.loss = lambda examples, features, prefix: seen.append(prefix) or plain(examples, features)
    view = session(model, identity=f32([1, 0.1], [0.1, 1]), batch=[1, 0], constants=method.constants(state))
    method.prepare(view)
    method.loss(view, EXAMPLES, torch.zeros(2))
    assert seen[0].tolist() == [[[0, 7], [0, 7], [1, 1], [2, 2]], [[9, 0], [9, 0], [1, 1], [2, 2]]]


def test_clients_get_no_earlier_prompts_where_none_is_trained_behind():
    for choose in (1, 2):
        method, state = after([9, 0], choose=choose)
        state.stage = 1
        assert list(method.constants(state)) == ["prompt-0"][: choose - 1]
        assert list(method.held(SimpleNamespace(width=2), 2).client) == ["earlier prompts"][: choose - 1]


def test_a_question_gets_the_best_prompts_the_best_one_last():
    method, state = after([9, 0], [0, 7], [5, 5])
    features = f32([1, 0.2], [0.2, 1])
    mix = method.route(list(state.subspaces), method.knowledge(state), features)
    assert mix.tolist() == [[0.5, 0, 0.5], [0, 0.5, 0.5]]
    shown = []
    questions = SimpleNamespace(
        knowledge=method.knowledge(state),
        identity=features,
        subspaces=list(state.subspaces.values()),
        features=torch.zeros(1),
        examples=EXAMPLES,
        limit=1,
        adapters=SimpleNamespace(mixed=lambda mix: nullcontext()),
        backbone=SimpleNamespace(generate=lambda examples, features, limit, prefix: shown.append(prefix)),
    )
    method.answer(questions, mix)
    assert [prompts[::2].tolist() for prompts in shown[0]] == [[[5, 5], [9, 0]], [[5, 5], [0, 7]]]
    method.answer(questions, f32([0, 1, 0], [0, 1, 0]))  # one subspace was asked for
    assert [prompts.tolist() for prompts in shown[1]] == [[[0, 7], [0, 7]]] * 2
    method.answer(questions, f32([0.5, 0, 0.5], [0, 1, 0]))  # the second question alone names one
    assert [prompts[::2].tolist() for prompts in shown[2]] == [[[5, 5], [9, 0]], [[0, 7]]]


def test_the_best_stand_last():
    assert best_last(f32([1, 3, 2], [5, 5, 4]), 2).tolist() == [[2, 1], [1, 0]]


def test_one_chosen_column_can_be_given_to_torch():
    assert torch.from_numpy(best_last(f32([1, 3, 2], [5, 5, 4]), 1)).tolist() == [[1], [0]]
