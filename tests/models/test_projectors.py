"""`adapter.projector: per_subspace`: each subspace brings its own projector, mixed by the same weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.hooks import Projectors
from fcit.models.layout import is_projector

CLOSE = {"rtol": 0, "atol": 1e-5}


# ---------------------------------------------------------------------- by hand


@pytest.fixture
def doubles():
    """A projector that doubles its input, and two loaded ones: times 10 and times 100."""
    module = nn.Linear(1, 1, bias=False).requires_grad_(False)
    module.weight.fill_(2.0)
    wrapper = nn.Sequential(module)
    projectors = Projectors(wrapper, module)
    projectors.load([{"weight": torch.tensor([[10.0]])}, {"weight": torch.tensor([[100.0]])}])
    return wrapper, projectors


def said(wrapper, projectors, weights) -> list[float]:
    with projectors.weighted(None if weights is None else torch.tensor(weights)):
        return wrapper(torch.ones(3, 1, 1))[:, 0, 0].tolist()


def test_outputs_are_averaged_by_weight(doubles):
    assert said(*doubles, [[1.0, 0.0], [0.25, 0.75], [2.0, 2.0]]) == [10.0, 77.5, 55.0]


def test_zero_weights_leave_the_module_itself(doubles):
    assert said(*doubles, [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]) == [2.0, 100.0, 2.0]


def test_no_weights_mean_all_alike(doubles):
    assert said(*doubles, None) == [55.0] * 3


def test_outside_and_when_nothing_is_loaded_the_module_speaks(doubles):
    wrapper, projectors = doubles
    assert wrapper(torch.ones(1, 1, 1)).item() == 2.0
    projectors.load([])
    assert said(wrapper, projectors, None) == [2.0] * 3
    assert said(wrapper, projectors, [[1.0], [1.0], [0.0]]) == [2.0] * 3


# ---------------------------------------------------------------------- in the model


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    return Adapters(Backbone(Config(feature_cache="off")), Adapter(projector="per_subspace"))


@pytest.fixture(scope="module")
def batch(adapters, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for n, colour in enumerate(["red", "blue", "white"]):
        Image.new("RGB", (64, 64), colour).save(root / f"{n}.png")
    texts = [("How many?", "3"), ("What is the title on this cover?", "ABC"), ("Name it.", "red cup")]
    examples = [adapters.backbone.encode(q, a, f"{n}.png") for n, (q, a) in enumerate(texts)]
    return examples, adapters.backbone.vision_features(root, [e.images[0] for e in examples])


@pytest.fixture(scope="module")
def two(adapters) -> list[dict[str, np.ndarray]]:
    """Two subspaces whose factors and projectors are large enough to change every answer."""
    found = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        noise = {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
        found.append(noise | {n: t + noise[n] for n, t in adapters.base_projector().items()})
    return found


@torch.no_grad()
def logits(adapters: Adapters, batch, rows=slice(None)) -> torch.Tensor:
    return adapters.backbone.answer_logits(batch[0][rows], batch[1][rows])[0]


def slot_logits(adapters: Adapters, tensors, batch) -> torch.Tensor:
    adapters.load({**adapters.base_projector(), **tensors})
    with adapters.training(), adapters.resting():
        return logits(adapters, batch)


def projected(adapters: Adapters, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return adapters.backbone._base.model.multi_modal_projector(features)


@pytest.mark.parametrize("which", [0, 1])
def test_weight_one_is_that_subspace_with_its_projector(adapters, batch, two, which):
    expected = slot_logits(adapters, two[which], batch)
    adapters.load_mixture(two, adapters.base_projector())
    with adapters.mixed(np.eye(2)[[which] * 3]):
        torch.testing.assert_close(logits(adapters, batch), expected, rtol=0, atol=1e-4)
    adapters.load_mixture(two[which : which + 1], adapters.base_projector())
    with adapters.mixed(None):
        torch.testing.assert_close(logits(adapters, batch), expected, rtol=0, atol=1e-4)


def test_the_mixture_is_the_weighted_mean_of_outputs_for_each_sample(adapters, batch, two):
    adapters.load_mixture(two, adapters.base_projector())
    alone = []
    for which in (0, 1):
        with adapters.mixed(np.eye(2)[[which] * 3]):
            alone.append(projected(adapters, batch[1]))
    weights = np.array([[0.3, 0.7], [1.0, 1.0], [0.0, 0.5]], np.float32)
    with adapters.mixed(weights):
        found = projected(adapters, batch[1])
    for n, (a, b) in enumerate([(0.3, 0.7), (0.5, 0.5), (0.0, 1.0)]):
        torch.testing.assert_close(found[n], a * alone[0][n] + b * alone[1][n], **CLOSE)


def test_a_batch_says_what_its_samples_say(adapters, batch, two):
    adapters.load_mixture(two, adapters.base_projector())
    weights = np.array([[0.3, 0.7], [0.0, 0.0], [0.9, 0.1]], np.float32)
    with adapters.mixed(weights):
        together = logits(adapters, batch)
    alone = []
    for n in range(3):
        with adapters.mixed(weights[n : n + 1]):
            alone.append(logits(adapters, batch, slice(n, n + 1)))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_no_weight_is_the_untouched_model(adapters, batch, two):
    with torch.no_grad(), adapters.backbone.model.disable_adapter():
        expected = logits(adapters, batch)
    adapters.load_mixture(two, adapters.base_projector())
    with adapters.mixed(np.zeros((3, 2))):
        torch.testing.assert_close(logits(adapters, batch), expected, rtol=0, atol=1e-4)


def test_projectors_of_a_mixture_are_forgotten_by_the_next(adapters, batch, two):
    bare = [{n: t for n, t in s.items() if not is_projector(n)} for s in two]
    adapters.load_mixture(two, adapters.base_projector())
    adapters.load_mixture(bare, adapters.base_projector())
    with torch.no_grad(), adapters.backbone.model.disable_adapter():
        expected = projected(adapters, batch[1])
    with adapters.mixed(np.full((3, 2), 0.5)):
        torch.testing.assert_close(projected(adapters, batch[1]), expected, **CLOSE)


def test_a_subspace_without_a_projector_uses_the_common_one(adapters, batch, two):
    bare = {n: t for n, t in two[0].items() if not is_projector(n)}
    common = {n: t for n, t in two[0].items() if is_projector(n)}
    adapters.load_mixture([bare, two[1]], common)
    with adapters.mixed(np.eye(2)[[0] * 3]):
        found = projected(adapters, batch[1])
    adapters.load_mixture(two, adapters.base_projector())
    with adapters.mixed(np.eye(2)[[0] * 3]):
        torch.testing.assert_close(projected(adapters, batch[1]), found, **CLOSE)


def test_training_reaches_the_projector_and_nothing_else_of_it(adapters, batch, two):
    adapters.load_mixture(two, adapters.base_projector())
    base = adapters.base_projector()
    adapters.load(two[0])
    names = [n for n in adapters.trainable if is_projector(n)]
    assert names
    with adapters.training() as parameters:
        adapters.backbone.loss(*batch).backward()
        assert all(adapters.trainable[n].grad.abs().sum() > 0 for n in names)
        torch.optim.SGD(parameters, lr=0.1).step()
    after = adapters.read()
    assert not any(np.array_equal(after[n], two[0][n]) for n in names)
    assert all(np.array_equal(t, base[n]) for n, t in adapters.base_projector().items())
