"""HiDe: anchors, and what is fused below the last block."""

import numpy as np
import pytest
import torch

from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Config
from fcit.io import trees
from fcit.methods.base import Factory, ServerState, Stats
from fcit.methods.hide import HiDe
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import A, B, last_block
from tests.helpers.toy import f32

LOW, TOP = "m.layers.2.x", "m.layers.10.x"  # 10 is after 2
SHAPES = {f"{layer}{factor}weight": (1, 1) for layer in (LOW, TOP) for factor in (A, B)}


def hide(**options) -> HiDe:
    return HiDe(RunConfig(method={"name": "hide", **options}))


def test_the_last_block():
    assert last_block(SHAPES) == {n for n in SHAPES if n.startswith(TOP)}
    assert last_block(["x", "y"]) == {"x", "y"}


def trained(method: HiDe) -> ServerState:
    """Three stages whose factors are all 2, then 3, then 5; features of two directions and both."""
    state = ServerState()
    for stage, (value, total) in enumerate([(2, [4, 0]), (3, [0, 2]), (5, [1, 1])]):
        state.stage = stage
        pairs = [(client, str(stage)) for client in (1, 2)]
        method.assign(state, pairs, {pair: Stats(np.array(total, float), 4) for pair in pairs}, Factory(0, SHAPES))
        method.assign(state, pairs, {}, Factory(0, SHAPES))
        state.subspaces[str(stage)] = {name: np.full((1, 1), value, np.float32) for name in SHAPES}
        method.end_stage(state, stage)
    return state


def below(state: ServerState, layer: str) -> float:
    """The product of all subspaces, each with weight one."""
    held = [t for t in state.subspaces.values() if f"{layer}{A}weight" in t]
    return sum((t[f"{layer}{B}weight"] @ t[f"{layer}{A}weight"]).item() for t in held)


def test_experts_are_summed_exactly_or_with_cross_terms():
    assert below(trained(hide()), LOW) == 4 + 9 + 25
    crossed = trained(hide(fusion="cross"))
    assert below(crossed, LOW) == (2 + 3 + 5) ** 2
    assert below(crossed, TOP) == 4 + 9 + 25
    assert crossed.subspaces["0"] == dict.fromkeys(last_block(SHAPES), 2)
    assert hide(fusion="cross").active(crossed) == 4 + 2 + 2  # what is empty is neither kept nor sent
    assert crossed.bytes == trained(hide()).bytes - 4 * 4


def test_a_projectors_numbers_are_no_blocks():
    method, state, merger = hide(fusion="cross"), ServerState(), "base_model.model.visual.merger.mlp.22.weight"
    for stage in (0, 1):
        state.stage = stage
        pairs = [(0, str(stage))]
        method.assign(state, pairs, {pairs[0]: Stats(np.ones(2), 1)}, Factory(0, {**SHAPES, merger: (1, 1)}))
        state.subspaces[str(stage)] = dict.fromkeys([*SHAPES, merger], np.full((1, 1), 2, np.float32))
        method.end_stage(state, stage)
    assert state.subspaces["0"][f"{TOP}{A}weight"] == 2
    assert state.subspaces["0"].keys() == {*last_block(SHAPES), merger}
    assert state.subspaces["1"][f"{TOP}{A}weight"] == 2


def test_questions_are_routed_by_anchors():
    method = hide()
    state = trained(method)
    assert state.memory["sums"]["0"].tolist() == [8, 0]  # each client once
    mix = method.route(["0", "1", "2"], method.knowledge(state), f32([2, 0], [0, 1]))
    similar = np.array([[1, 0, 2**-0.5], [0, 1, 2**-0.5]]) / 0.1
    assert mix == pytest.approx(np.exp(similar) / np.exp(similar).sum(axis=1, keepdims=True), abs=1e-6)
    assert method.route(["2", "0", "1"], method.knowledge(state), f32([2, 0])).argmax() == 1


def test_known_clients_count_once_in_every_stage_they_return_in():
    method = hide()
    state = trained(method)
    state.stage = 3
    for _ in range(2):
        method.assign(state, [(1, "0"), (2, "1")], {}, Factory(0, SHAPES))
    assert state.memory["sums"]["3"].tolist() == [4, 2]
    mix = method.route(list(state.subspaces), method.knowledge(state), f32([4, 2]))
    assert mix.argmax() == 3
    plain, tensors = trees.flatten(state.memory)  # as in a checkpoint
    assert trees.restore(plain, tensors)["sums"]["3"].tolist() == [4, 2]


def test_the_mix_acts_in_the_last_block_only(tmp_path):
    backbone = Backbone(Config())
    adapters = Adapters(backbone, Adapter(rank=2, alpha=4, projector="frozen"), hide().layout)
    examples = [backbone.encode("How many?", "3", None), backbone.encode("Name it.", "red cup", None)]
    features, rng = backbone.vision_features(tmp_path, []), np.random.default_rng(0)
    shapes = {n: tuple(p.shape) for n, p in adapters.trainable.items()}
    first, second = ({n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))

    @torch.no_grad()
    def logits(subspaces, weights):
        adapters.load_mixture(subspaces, {})
        with adapters.mixed(weights):
            return backbone.answer_logits(examples, features)[0].numpy()

    lower = {n: np.zeros_like(t) for n, t in first.items() if n not in last_block(first)}
    short = {n: t for n, t in first.items() if n not in lower}
    for pair, emptied in (([short, second], [{**first, **lower}, second]), ([second, short], [second, first | lower])):
        assert np.array_equal(logits(pair, f32([1, 0.5], [0, 1])), logits(emptied, f32([1, 0.5], [0, 1])))

    without = {n: np.zeros_like(t) if n in last_block(second) else t for n, t in second.items()}
    mixed = logits([first, second], f32([1, 0], [1, 0]))
    assert mixed == pytest.approx(logits([first, without], None), abs=1e-4)
    assert np.abs(mixed - logits([first], None)).max() > 0.01
