"""Two mixtures with routers: which expert is chosen, what its router learns, and how their outputs are fused."""

import math

import numpy as np
import pytest
import torch

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.halves import one
from fcit.models.layout import Layout
from fcit.models.reading import asked, average, largest

# ---------------------------------------------------------------------- by hand


def test_the_chosen_one_counts_whole_and_has_the_gradient_of_its_probability():
    """Probabilities 3/4 and 1/4: d p_1 / d logits = (3/16, -3/16), times what the choice is worth, 2."""
    logits = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    chosen = one(logits)
    assert chosen.tolist() == [[1.0, 0.0]]
    (chosen * torch.tensor([2.0, 5.0])).sum().backward()
    assert logits.grad.tolist() == [pytest.approx([0.375, -0.375])]


def test_a_dead_router_chooses_the_same_and_has_no_gradient():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    assert one(logits, dead=True).tolist() == one(logits).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert not one(logits, dead=True).requires_grad


def test_a_question_ends_where_learning_begins():
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    learnt = torch.tensor([[0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]) > 0
    assert asked(mask, learnt).int().tolist() == [[0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_states_are_averaged_and_compared_over_the_question_alone():
    states = torch.tensor([[[9.0, 9], [1, -4], [3, -8]], [[0, 2], [4, 4], [9, 9]]])
    places = torch.tensor([[0, 1, 1], [1, 1, 0]]) > 0
    assert average(states, places).tolist() == [[2, -6], [2, 3]]
    assert largest(states, places).tolist() == [[3, -4], [4, 4]]


# ---------------------------------------------------------------------- in a layer


def build(gate: str = "halves") -> Adapters:
    layout = Layout(experts=4, gate=gate, identity="suffix")
    return Adapters(Backbone(Config(feature_cache="off")), Adapter(dropout=0, projector="frozen"), layout)


@pytest.fixture(scope="module")
def live() -> Adapters:
    return build()


def drawn(adapters: Adapters, seed: int, width: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, width, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}


def features(adapters: Adapters, count: int, seed: int = 0) -> np.ndarray:
    width = adapters.backbone.identity.width("suffix")
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_one_expert_of_either_mixture_fused_token_by_token(live):
    """W0 x + p o_v + q o_i, with o_v and o_i formed in full, as the formula has them; rank 8 among 4 experts."""
    tensors = drawn(live, 1)
    live.load(tensors)
    name, layer = sorted(live._layers.items())[1]
    part = {key: torch.from_numpy(tensors[f"{name}.lora_{key}"]) for key in ("A.weight", "B.weight")}
    router = {key: torch.from_numpy(tensors[f"{name}.lora_gate.{key}"]) for key in ("visual", "instruction", "fusion")}
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    question = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]) > 0
    told = features(live, 2)
    wanted = layer.base_layer(x)
    for row in range(2):
        v = int((router["visual"] @ x[row][question[row]].mean(0)).argmax())
        i = 2 + int((router["instruction"] @ torch.from_numpy(told[row])).argmax())
        seen, demanded = (
            2.0 * x[row] @ part["A.weight"][2 * e : 2 * e + 2].T @ part["B.weight"][:, 2 * e : 2 * e + 2].T
            for e in (v, i)
        )
        scores = torch.stack([seen @ router["fusion"][0], demanded @ router["fusion"][1]], dim=-1)
        p, q = scores.softmax(-1).T
        wanted[row] += p[:, None] * seen + q[:, None] * demanded
    with live.training(), torch.no_grad(), live.instructed(told), live.backbone.reading.records(x, question):
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def records(adapters: Adapters):
    backbone = adapters.backbone
    texts = [("How many?", "3"), ("What is the title on this cover?", "ABC"), ("Name it.", "red cup")]
    encoded = [backbone.encode(q, a, "") for q, a in texts]
    shape = (3, *backbone.family.shape)
    return encoded, torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("gate", "learns"), [("halves", True), ("dead-halves", False)])
def test_routers_learn_or_have_no_gradient_at_all(gate, learns):
    adapters = build(gate)
    adapters.load(drawn(adapters, 3))
    with adapters.training(), adapters.instructed(features(adapters, 3)):
        adapters.backbone.loss(*records(adapters)).backward()
        gradients = {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in adapters.trainable.items()}
    routers = {n: g for n, g in gradients.items() if n.endswith((".visual", ".instruction"))}
    assert len(routers) == 2 * len(adapters._layers)
    assert {g > 0 for g in routers.values()} == {learns}
    assert all(g > 0 for n, g in gradients.items() if n not in routers)


def test_the_loss_is_that_of_dead_routers(live):
    """Straight through: the two differ in their gradients alone."""
    dead, tensors = build("dead-halves"), drawn(live, 4)
    losses = []
    for adapters in (live, dead):
        adapters.load(tensors)
        with adapters.training(), torch.no_grad(), adapters.instructed(features(adapters, 3)):
            losses.append(float(adapters.backbone.loss(*records(adapters))))
    assert losses[0] == losses[1]


def test_answers_do_not_choose_for_questions(live):
    """The question's logits are the same whatever answer a record has."""
    live.load(drawn(live, 5))
    backbone, (_, pictures) = live.backbone, records(live)
    firsts = []
    for answer in ("red cup", "red fish is above blue fish"):
        with live.training(), torch.no_grad(), live.instructed(features(live, 1)):
            example = [backbone.encode("What is it?", answer, "")]
            firsts.append(backbone.answer_logits(example, pictures[:1])[0][0])
    torch.testing.assert_close(*firsts, rtol=0, atol=1e-5)
