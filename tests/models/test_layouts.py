"""Gates, prompt pools, teachers and frozen sums on the built-in model."""

import numpy as np
import pytest
import torch

from fcit import seeding
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.collate import Encoded
from fcit.errors import ConfigError
from fcit.methods.base import Factory
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone, _insert, _kept_of_rows
from fcit.models.layout import KEYS, PROMPTS, Layout, is_projector
from tests.helpers.runs import BACKBONE

CLOSE = {"rtol": 0, "atol": 1e-4}


PLAIN = Layout()


def build(layout: Layout = PLAIN, **options) -> Adapters:
    return Adapters(Backbone(Config(**BACKBONE, feature_cache="off")), Adapter(dropout=0, **options), layout)


def examples(backbone: Backbone):
    texts = [("How many?", "3"), ("What is the title on this cover?", "ABC"), ("Name it.", "red cup")]
    encoded = [backbone.encode(q, a, "") for q, a in texts]
    shape = (3, backbone.family.tokens, backbone._base.config.vision_config.hidden_size)
    return encoded, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def random(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {n: p.shape for n, p in adapters.trainable.items() if not is_projector(n)}
    return {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in shapes.items()}


@torch.no_grad()
def logits(adapters: Adapters, batch, prefix=None) -> torch.Tensor:
    return adapters.backbone.answer_logits(*batch, prefix)[0]


@pytest.fixture(scope="module")
def gated() -> Adapters:
    return build(Layout(experts=4))


@pytest.fixture(scope="module")
def plain() -> Adapters:
    return build()


# --------------------------------------------------------------------------- gates


def test_gates_weigh_experts_token_by_token(gated):
    """One layer against the formula: W0 x + s sum_i softmax(W_g x)_i B_i A_i x."""
    adapters, tensors = gated, random(gated, 1)
    adapters.load({**tensors, **adapters.base_projector()})
    name, layer = next(iter(adapters._layers.items()))
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    a, b, gate = (torch.from_numpy(tensors[f"{name}.lora_{part}.weight"]) for part in ("A", "B", "gate"))
    g = torch.softmax(x @ gate.T, dim=-1)
    wanted = layer.base_layer(x)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)  # rank 8 among 4 experts
        wanted = wanted + 2.0 * g[..., i : i + 1] * (x @ a[rows].T @ b[:, rows].T)
    with adapters.training(), torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_gates_of_questions_are_blended_into_those_of_tokens(gated):
    """Two questions: 0.6 of the first expert for one, none for the other; by hand in one layer of the mixture."""
    adapters, tensors = gated, random(gated, 1)
    adapters.load_mixture([tensors], adapters.base_projector())
    name = sorted(adapters._layers)[1]
    layer = adapters._layers[name]
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    a, b, gate = (torch.from_numpy(tensors[f"{name}.lora_{part}.weight"]) for part in ("A", "B", "gate"))
    g = torch.softmax(x @ gate.T, dim=-1)
    g[0] = 0.4 * g[0] + 0.6 * torch.eye(4)[0]
    wanted = layer.base_layer(x)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        wanted = wanted + 2.0 * g[..., i : i + 1] * (x @ a[rows].T @ b[:, rows].T)
    prior = np.zeros((2, len(adapters._layers), 4), np.float32)
    prior[0, 1, 0] = 0.6
    with torch.no_grad(), adapters.gated_by(prior):
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    assert not adapters.backbone.answering.rows


def test_used_experts_are_counted(gated):
    tensors = {**random(gated, 1), **gated.base_projector()}
    name, layer = next(iter(gated._layers.items()))
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    best = (x @ torch.from_numpy(tensors[f"{name}.lora_gate.weight"]).T).topk(2).indices
    gated.load(tensors)
    with gated.training(), torch.no_grad(), gated.gate_use(2) as used:
        layer(x)
    counted = used[f"{name}.lora_gate.weight"]
    assert counted.tolist() == torch.bincount(best.flatten(), minlength=4).tolist()
    assert counted.sum() == 20
    with gated.training(), torch.no_grad():
        layer(x)
    assert counted.sum() == 20


def test_a_tokens_largest_gates_act_and_learn():
    """One layer with the largest of four gates, by hand; its weight stays, so that the gate has a gradient."""
    adapters = build(Layout(experts=4, top=1))
    tensors = random(adapters, 1)
    adapters.load({**tensors, **adapters.base_projector()})
    name, layer = next(iter(adapters._layers.items()))
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    a, b, gate = (torch.from_numpy(tensors[f"{name}.lora_{part}.weight"]) for part in ("A", "B", "gate"))
    g = torch.softmax(x @ gate.T, dim=-1)
    g = g * (g == g.amax(-1, keepdim=True))
    wanted = layer.base_layer(x)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        wanted = wanted + 2.0 * g[..., i : i + 1] * (x @ a[rows].T @ b[:, rows].T)
    sums = {f"{name}.lora_gate.weight": torch.zeros(4)}
    with adapters.training():
        adapters.sum_gates(sums)
        output = layer(x)
        output.sum().backward()
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
        assert adapters.trainable[f"{name}.lora_gate.weight"].grad.any()
    torch.testing.assert_close(sums[f"{name}.lora_gate.weight"], g.sum((0, 1)))
    with adapters.training():
        layer(x)  # another training sums nothing
    torch.testing.assert_close(sums[f"{name}.lora_gate.weight"], g.sum((0, 1)))
    adapters.load_mixture([tensors], adapters.base_projector())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_gated_model_answers_as_it_was_trained(gated):
    tensors = {**random(gated, 2), **gated.base_projector()}
    batch = examples(gated.backbone)
    gated.load(tensors)
    with gated.training():
        trained = logits(gated, batch)
    gated.load({n: np.zeros_like(t) for n, t in tensors.items() if not is_projector(n)})
    gated.load_mixture([tensors], gated.base_projector())
    with gated.mixed(np.ones((3, 1), np.float32)):
        torch.testing.assert_close(logits(gated, batch), trained, **CLOSE)


def test_gates_get_gradients(gated):
    gated.load({**random(gated, 3), **gated.base_projector()})
    encoded, features = examples(gated.backbone)
    with gated.training():
        gated.backbone.loss(encoded, features).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gated.trainable.values())


def test_experts_must_divide_the_rank():
    with pytest.raises(ConfigError, match=r"adapter\.rank: 8 cannot be divided among 3 experts"):
        build(Layout(experts=3))


# --------------------------------------------------------------------------- prompts


def test_prompts_stand_after_the_first_token():
    """Rows "pad B x" and "B x y" with prompts P, Q: "pad B P Q x" and "B P Q x y"."""
    embeds = torch.tensor([[[0.0], [1], [2]], [[1], [2], [3]]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    labels = torch.tensor([[-100, -100, 7], [-100, 8, 9]])
    prefix = torch.tensor([[[50.0], [51]], [[60], [61]]])
    joined, new_mask, new_labels = _insert(prefix, embeds, mask, labels, last=False)
    assert joined[..., 0].tolist() == [[0, 1, 50, 51, 2], [1, 60, 61, 2, 3]]
    assert new_mask.tolist() == [[0, 1, 1, 1, 1], [1] * 5]
    assert new_labels.tolist() == [[-100, -100, -100, -100, 7], [-100, -100, -100, 8, 9]]


def test_rows_with_fewer_prompts_are_padded_further():
    """Rows "B x" and "pad B" with prompts P and R, S: "pad B P x" and "pad B R S"; no label of the padding is kept."""
    embeds = torch.tensor([[[1.0], [2]], [[0], [1]]])
    mask, labels = torch.tensor([[1, 1], [0, 1]]), torch.tensor([[5, 7], [-100, -100]])
    prefix = [torch.tensor([[50.0]]), torch.tensor([[60.0], [61]])]
    joined, new_mask, new_labels = _insert(prefix, embeds, mask, labels, last=False)
    assert (joined[..., 0] * new_mask).tolist() == [[0, 1, 50, 2], [0, 1, 60, 61]]
    assert new_mask.tolist() == [[0, 1, 1, 1]] * 2
    assert new_labels.tolist() == [[-100, 5, -100, 7], [-100] * 4]


def test_padding_may_come_behind_rows_and_their_prompts():
    """Rows "B x", "B pad" and "B x" with prompts P, R S and none: "B P x pad", "B R S pad" and "B x pad pad"."""
    embeds = torch.tensor([[[1.0], [2]], [[1], [0]], [[1], [3]]])
    mask, labels = torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.tensor([[5, 7], [5, 6], [-100, 8]])
    prefix = [torch.tensor([[50.0]]), torch.tensor([[60.0], [61]]), torch.zeros(0, 1)]
    joined, new_mask, new_labels = _insert(prefix, embeds, mask, labels, last=True)
    assert (joined[..., 0] * new_mask).tolist() == [[1, 50, 2, 0], [1, 60, 61, 0], [1, 3, 0, 0]]
    assert new_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert new_labels.tolist() == [[5, -100, 7, -100], [5, -100, -100, -100], [-100, 8, -100, -100]]


def test_each_row_keeps_the_places_before_its_learnt_tokens():
    """Two turns in the first row; the second learns one token, and has one more place, which learns nothing."""
    labels = torch.tensor([[-100, 8, -100, 9, -100], [-100, -100, -100, -100, 7]])
    encoded = [Encoded((1, 8, 2, 9), ((1, 2), (3, 4)), ()), Encoded((1, 2, 3, 4, 7), ((4, 5),), ())]
    keep = _kept_of_rows(labels, encoded)
    assert keep.tolist() == [[0, 2], [3, 0]]
    assert labels.gather(1, keep + 1).tolist() == [[8, 9], [7, -100]]


@pytest.mark.parametrize("lengths", [(3, 3, 3), (3, 1, 2), (0, 3, 1)])
def test_a_prompted_batch_equals_single_questions(lengths):
    adapters = build(Layout(pool=4, length=3))
    encoded, features = examples(adapters.backbone)
    prefix = torch.from_numpy(adapters.start(0)[PROMPTS][:3])
    if len(set(lengths)) > 1:
        prefix = [prompts[:length] for prompts, length in zip(prefix, lengths, strict=True)]
    adapters.load_mixture([], adapters.base_projector())
    together = adapters.backbone.generate(encoded, features, 8, prefix)
    single = [
        adapters.backbone.generate([e], features[i : i + 1], 8, prefix[i : i + 1])[0] for i, e in enumerate(encoded)
    ]
    assert together == single
    assert not torch.equal(logits(adapters, (encoded, features), prefix), logits(adapters, (encoded, features)))


def test_a_pool_is_all_that_is_trained_and_starts_from_words():
    adapters = build(Layout(pool=4, length=3), projector="frozen")
    assert set(adapters.trainable) == {KEYS, PROMPTS}
    start = adapters.start(7)[PROMPTS]
    table = adapters.backbone.word_embeddings
    assert all((table == row).all(axis=1).any() for row in start.reshape(-1, table.shape[1]))
    made = Factory(7, {n: tuple(p.shape) for n, p in adapters.trainable.items()}, given=adapters.start(7))("0")
    assert np.array_equal(made[PROMPTS], start)
    assert made[KEYS].any()


# --------------------------------------------------------------------------- teachers and frozen sums


def test_a_frozen_sum_stands_behind_the_slot(plain):
    """Training with two frozen subspaces behind a third equals answering with the sum of the three."""
    three = [random(plain, seed) for seed in (1, 2, 3)]
    batch = examples(plain.backbone)
    plain.load({**three[2], **plain.base_projector()})
    with plain.training():
        plain.add_frozen(three[:2])
        trained = logits(plain, batch)
        plain.backbone.loss(*batch).backward()
        assert all(p.grad.abs().sum() > 0 for p in plain.trainable.values())
    plain.load_mixture(three, plain.base_projector())
    with plain.mixed(np.ones((3, 3), np.float32)):
        torch.testing.assert_close(logits(plain, batch), trained, **CLOSE)


def test_frozen_sums_and_teachers_go_with_bfloat16():
    adapters = Adapters(Backbone(Config(**BACKBONE, feature_cache="off", dtype="bfloat16")), Adapter())
    encoded, features = examples(adapters.backbone)
    batch = encoded, features.bfloat16()
    tensors = {**random(adapters, 1), **adapters.base_projector()}
    adapters.load(tensors)
    with adapters.training():
        alone = logits(adapters, batch)
        adapters.add_frozen([random(adapters, 2)])
        assert not torch.equal(logits(adapters, batch), alone)
        adapters.backbone.loss(*batch).backward()


@pytest.mark.parametrize("size", [1, 3])
def test_making_room_for_a_mixture_draws_nothing(plain, size):
    """Else dropout would depend on what a process did before this training."""
    with seeding.torch_seeded(0, "room"):
        wanted = torch.rand(3)
    with seeding.torch_seeded(0, "room"), plain.training():
        plain.load_mixture([random(plain, seed) for seed in range(size)], plain.base_projector())
        assert torch.equal(torch.rand(3), wanted)


def test_nothing_stays_behind(plain):
    one, other = random(plain, 1), random(plain, 2)
    batch = examples(plain.backbone)
    plain.load({**one, **plain.base_projector()})
    with plain.training():
        alone = logits(plain, batch)
        plain.add_frozen([other])
    with plain.training():
        assert torch.equal(logits(plain, batch), alone)


def test_a_teacher_speaks_in_between(plain):
    mine, teacher = random(plain, 1), random(plain, 2)
    batch = examples(plain.backbone)
    taught_projector = {n: t + np.float32(0.01) for n, t in plain.base_projector().items()}
    plain.load({**teacher, **taught_projector})
    with plain.training():
        wanted = logits(plain, batch)
    plain.load({**mine, **plain.base_projector()})
    with plain.training() as parameters:
        before = logits(plain, batch)
        plain.load_teacher({**teacher, **taught_projector})
        with plain.teacher():
            taught = logits(plain, batch)
        torch.testing.assert_close(taught, wanted, **CLOSE)
        assert torch.equal(logits(plain, batch), before)
        plain.backbone.loss(*batch).backward()
        assert all(p.requires_grad and p.grad is not None for p in parameters)


def test_a_resting_slot_has_no_dropout_and_all_gradients():
    dropping = Adapters(Backbone(Config(**BACKBONE, feature_cache="off")), Adapter(dropout=0.5))
    dropping.load({**random(dropping, 1), **dropping.base_projector()})
    batch = examples(dropping.backbone)
    frozen = next(n for n in dropping.trainable if ".lora_A." in n)
    with dropping.training([frozen]) as parameters:
        assert len(parameters) == len(dropping.trainable) - 1
        assert not dropping.trainable[frozen].requires_grad
        with dropping.resting() as every:
            assert len(every) == len(dropping.trainable)
            assert dropping.trainable[frozen].requires_grad
            assert torch.equal(logits(dropping, batch), logits(dropping, batch))
        assert not dropping.trainable[frozen].requires_grad
        assert not torch.equal(logits(dropping, batch), logits(dropping, batch))
