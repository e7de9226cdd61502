"""The training slot at a smaller rank than the run's."""

import numpy as np
import pytest
import torch

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.models.ranks import cut, padded
from tests.helpers.runs import BACKBONE


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    return Adapters(Backbone(Config(**BACKBONE, feature_cache="off")), Adapter(rank=4, dropout=0.0))


@pytest.fixture(scope="module")
def subspace(adapters) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in adapters.shapes.items()}
    return {n: t for n, t in noise.items() if not is_projector(n)} | adapters.base_projector()


def logits(adapters, tensors) -> torch.Tensor:
    adapters.load(tensors)
    encoded = adapters.backbone.encode("What is this?", "red", None)
    with adapters.training(), torch.no_grad():
        return adapters.backbone.loss([encoded], torch.zeros(0))


def test_a_smaller_rank_is_zeros_in_the_place_of_the_rest(adapters, subspace):
    small = {n: cut(n, t, 2) for n, t in subspace.items()}
    filled = {n: padded(n, t, 4) if not is_projector(n) else t for n, t in small.items()}
    narrow = logits(adapters, small)
    assert {n: t.shape for n, t in adapters.read().items()} == {n: t.shape for n, t in small.items()}
    torch.testing.assert_close(narrow, logits(adapters, filled))
    assert not torch.allclose(narrow, logits(adapters, subspace))


def test_layout_and_shapes_are_those_of_the_run(adapters, subspace):
    adapters.load(subspace)
    hashes, shapes = adapters.hashes, dict(adapters.shapes)
    adapters.load({n: cut(n, t, 1) for n, t in subspace.items()})
    assert adapters.hashes == hashes
    assert adapters.shapes == shapes
    adapters.load(subspace)
    assert all(np.array_equal(adapters.read()[n], t) for n, t in subspace.items())


def test_other_shapes_are_refused(adapters, subspace):
    name = next(n for n in subspace if ".lora_A." in n)
    with pytest.raises(ValueError, match="or a smaller rank"):
        adapters.load({name: np.zeros((5, subspace[name].shape[1]), np.float32)})
    with pytest.raises(ValueError, match="or a smaller rank"):
        adapters.load({name: subspace[name][:, :-1]})
