"""KeepLoRA: where A comes from, and what is protected afterwards."""

import numpy as np
import pytest
import torch

from fcit import seeding
from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Config
from fcit.methods.base import Factory, ServerState, Update
from fcit.methods.keeplora import KeepLoRA, leading, widened
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import A, B
from fcit.models.spectra import principal
from tests.helpers.toy import f32, session

NONE = np.zeros((0, 3))


def keeplora(**options) -> KeepLoRA:
    return KeepLoRA(RunConfig(method={"name": "keeplora", **options}))


def test_the_first_factor_is_the_gradients_main_direction_outside_of_what_is_protected():
    rows = f32([5, 3, 0], [5, -3, 0.1])
    assert np.abs(leading(rows, NONE, f32([1, 1, 1]))) == pytest.approx(f32([1, 0, 0]), abs=0.02)
    assert np.abs(leading(rows, np.eye(1, 3), f32([1, 1, 1]))) == pytest.approx(f32([0, 1, 0]), abs=0.02)


def test_directions_that_the_gradient_lacks_come_from_the_old_factor():
    a = leading(f32([0, 2, 0]), np.eye(1, 3), f32([1, 1, 0], [4, 3, 2]))
    assert np.abs(a) == pytest.approx(f32([0, 1, 0], [0, 0, 1]), abs=1e-6)
    assert leading(f32([0, 0, 0]), np.eye(3), f32([1, 2, 3])).tolist() == [[0, 0, 0]]  # nothing is left


def test_so_much_is_protected_that_a_share_of_the_gradient_is():
    """Squares 16, 4 and 1 in three directions: the first holds 16 / 21 of them, two hold 20 / 21."""
    rows = np.diag([4.0, 2.0, 1.0])
    assert len(widened(NONE, rows, 0.7)) == 1
    assert len(widened(NONE, rows, 0.9)) == 2
    assert np.abs(widened(np.eye(1, 3), rows, 0.9)) == pytest.approx(np.eye(2, 3))
    assert len(widened(np.eye(1, 3), rows, 0.7)) == 1  # the earlier stage's direction suffices
    assert len(widened(NONE, np.zeros((2, 3)), 0.9)) == 0


def test_a_share_of_the_records_is_measured_on():
    assert [keeplora(samples=0.2).measured_records(count) for count in (1, 5, 6, 40)] == [1, 1, 2, 8]


@pytest.mark.parametrize("turned", [False, True])
def test_principal_directions_of_a_weight(turned):
    layer = torch.nn.Linear(2, 3) if not turned else torch.nn.Linear(3, 2)
    weight = torch.tensor([[3.0, 0], [0, 4], [0, 0]])
    layer.weight.data = weight.T if turned else weight
    kept = principal(layer, 0.6)  # 16 / 25 of the squares
    assert kept.abs().numpy() == pytest.approx(np.eye(layer.in_features)[1:2], abs=1e-6)
    assert len(principal(layer, 0.65)) == 2
    assert len(principal(layer, 0)) == 0


def test_the_server_averages_sketches_and_freezes_the_first_factor():
    method, state = keeplora(sketches=1), ServerState()
    a, b = f"x{A}weight", f"x{B}weight"
    method.assign(state, [(0, "s"), (1, "s")], {}, Factory(0, {a: (1, 3), b: (2, 1)}))
    sent = [Update(0, "0", 1, {}, {f"0:{a}": f32([3, 1, 0])}), Update(1, "0", 3, {}, {f"0:{a}": f32([-1, 1, 0])})]
    method.absorb(state, iter(sent))
    assert np.abs(state.subspaces["0"][a]) == pytest.approx(f32([0, 1, 0]), abs=1e-6)
    assert method.frozen(state.subspaces["0"], 0) == [a]


def test_a_sketch_is_that_of_the_dense_gradient(tmp_path):
    """s Omega^T G, with G = dL/dW of the frozen weight; the slot is as before, and its output, too."""
    backbone = Backbone(Config())
    adapters = Adapters(backbone, Adapter(rank=2, alpha=4, projector="frozen"))
    examples = [backbone.encode("How many?", "3", None), backbone.encode("Name it.", "red cup", None)]
    name = next(n for n in adapters.trainable if A in n)
    method = keeplora(principal=0.0, samples=1.0, sketches=1)
    view = session(adapters, examples=examples, seed=5, image_root=tmp_path)
    view.backbone = backbone
    with adapters.training():
        before = adapters.read()
        sketch = method.measure(view)[f"0:{name}"]
        assert all(np.array_equal(adapters.read()[n], t) for n, t in before.items())
        weight = adapters._layers[name.partition(A)[0]].base_layer.weight.requires_grad_(True)
        with adapters.resting():
            losses = [backbone.loss([e], backbone.vision_features(tmp_path, [])) for e in examples]
            dense = sum(torch.autograd.grad(loss, weight)[0] for loss in losses) / 2
    name_b = name.replace(A, B)
    omega = seeding.generator(5, "sketch", 0, name_b).normal(size=before[name_b].shape)
    assert sketch == pytest.approx(2 * omega.T @ dense.numpy(), abs=1e-5, rel=1e-3)


def test_absurd_sketches_are_rejected():
    name = f"0:x{A}weight"
    assert keeplora().reject_reason({name: f32([30, -1e4, 0])}, 3) is None
    assert keeplora().reject_reason({}, 3) is None
    assert "sketch of a gradient with 1e+30" in keeplora().reject_reason({name: f32([0, -1e30, 0])}, 3)


def turned(count: int, width: int = 32) -> np.ndarray:
    """Orthonormal rows in no special position, float32 as the server keeps them."""
    return np.linalg.qr(np.random.default_rng(3).normal(size=(width, width)))[0][:count].astype(np.float32)


@pytest.mark.parametrize("protected", [20, 32])
def test_rounding_is_no_direction(protected):
    """A gradient inside of what is protected has nothing outside; with all protected, neither has the old A."""
    rng = np.random.default_rng(4)
    known = turned(protected).astype(np.float64)
    rows = (rng.normal(size=(8, protected)) @ known).astype(np.float32)
    old = rng.normal(size=(4, 32)).astype(np.float32)
    a = leading(rows, known, old)
    assert len(widened(known, rows, 1.0)) == protected
    assert np.abs(a @ known.T).max() < 1e-5
    assert np.linalg.norm(a, axis=1) == pytest.approx(np.full(4, float(protected < 32)), abs=1e-5)


def test_real_directions_are_kept_beside_noise():
    rng = np.random.default_rng(5)
    basis = turned(32).astype(np.float64)
    rows = rng.normal(size=(8, 20)) @ basis[:20] + 1e-2 * rng.normal(size=(8, 3)) @ basis[20:23]
    wider = widened(basis[:20], rows.astype(np.float32), 1.0)
    assert len(wider) == 23
    assert wider @ wider.T == pytest.approx(np.eye(23), abs=1e-6)
    assert np.abs(wider[20:] @ basis[23:].T).max() < 1e-4
