"""ProgLoRA: weights from keys, by hand; which of it learns; what a new stage begins with."""

import math

import numpy as np
import pytest
import torch

from fcit import config as configuration
from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.methods.base import Factory, ServerState, Session
from fcit.methods.proglora import ProgLoRA
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import Layout, is_projector
from tests.helpers.toy import f32


def made(**options) -> ProgLoRA:
    return ProgLoRA(RunConfig(method={"name": "proglora", "hidden": 1, **options}))


def network(key: list[float], up: tuple[float, float] = (1.0, 2.0)) -> dict[str, torch.Tensor]:
    """W1 adds up the two numbers of u, W2 gives the sum to both with the factors ``up``."""
    parts = {"key": key, "down": [[1.0, 1.0]], "up": [[up[0]], [up[1]]], "norm.weight": [1.0, 1.0]}
    return {f"routing.{n}": torch.tensor(v) for n, v in {**parts, "norm.bias": [0.0, 0.5]}.items()}


def test_projectors_of_the_subspaces_are_refused():
    """Their weights would follow from the image that they project."""
    with pytest.raises(ConfigError, match="'proglora' these follow from the projected images; choose projector"):
        configuration.parse({"method": "proglora", "adapter": {"projector": "per_subspace"}})
    for policy in ("shared", "frozen"):
        configuration.parse({"method": "proglora", "adapter": {"projector": policy}})


# ---------------------------------------------------------------------- weights


def test_a_logit_is_the_key_times_the_normed_question():
    """W2 W1 u = (1, 2), SiLU keeps their order, the norm makes it (-1, 1) and adds (0, 0.5): k = (3, 1) gives -1.5."""
    logits = made()._logits([network([3.0, 1.0])], torch.tensor([[0.25, 0.75]]), 1)
    assert logits.tolist() == [[pytest.approx(-1.5 / math.sqrt(2), abs=1e-4)]]


def test_each_key_meets_the_network_that_it_was_trained_with():
    """The second network turns the order around: (1, -1) + (0, 0.5)."""
    keys = [network([1.0, 0.0]), network([1.0, 0.0], (2.0, 1.0))]
    logits = made()._logits(keys, torch.tensor([[0.25, 0.75]]), 1) * math.sqrt(2)
    assert logits.tolist() == [pytest.approx([-1, 1], abs=1e-4)]
    newest = made(routing="released")._logits([*keys, keys[1]], torch.tensor([[0.25, 0.75]]), 1)
    assert newest[0, 0] == newest[0, 1]  # the first key, too, meets the newest


def shifted(over: int | None) -> list[list[float]]:
    """Logits (1, 4) and (3, 2) of two questions by an old key and the newest, as the released code lowers them."""
    method, scores = made(routing="released"), torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcit.methods.proglora._before", lambda known, u: u)
        keys = [{"routing.key": torch.tensor([1.0, 0.0])}, {"routing.key": torch.tensor([0.0, 1.0])}]
        return method._logits(keys, scores * math.sqrt(2), over).tolist()


def test_released_lowers_old_and_new_logits_by_their_own_maximum():
    assert shifted(None) == [pytest.approx([-2, 0]), pytest.approx([0, -2])]
    assert shifted(1) == [
        pytest.approx([0, 0]),
        pytest.approx([0, 0]),
    ]  # of a question alone: the newest is not compared


# ---------------------------------------------------------------------- stages


def test_a_new_stage_has_a_key_of_its_own_and_goes_on_with_the_network():
    method, state = made(), ServerState()
    shapes = {"x.lora_A.weight": (1, 2), **Layout(keyed=1).key(2)}
    make = Factory(0, shapes, given={"routing.norm.weight": f32(1, 1)})
    method.assign(state, [(0, "a")], {}, make)
    assert state.subspaces["0"]["routing.norm.weight"].tolist() == [1, 1]
    state.subspaces["0"] = {n: np.full_like(t, 7) for n, t in state.subspaces["0"].items()}
    state.stage = 1
    for _ in range(2):
        method.assign(state, [(0, "b")], {}, make)
    new = state.subspaces["1"]
    assert {n for n, t in new.items() if (t == 7).all()} == set(shapes) - {"x.lora_A.weight", "routing.key"}
    assert list(method.constants(state)) == ["frozen-0"]
    assert method.constants(state)["frozen-0"] is state.subspaces["0"]


# ---------------------------------------------------------------------- what learns


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    layout = ProgLoRA(RunConfig(method={"name": "proglora", "hidden": 5})).layout
    return Adapters(Backbone(Config(feature_cache="off")), Adapter(dropout=0), layout)


def drawn(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {n: p.shape for n, p in adapters.trainable.items() if not is_projector(n)}
    return {n: rng.normal(0, 0.3, shape).astype(np.float32) for n, shape in shapes.items()}


def order(adapters: Adapters, stage: int) -> Session:
    constants = {f"frozen-{n}": drawn(adapters, n) for n in range(stage)}
    plain = {"client": 0, "shard": "s", "round": 0, "subspace": str(stage), "stage": stage}
    return Session(backbone=adapters.backbone, adapters=adapters, constants=constants, **plain)


def records(adapters: Adapters):
    backbone = adapters.backbone
    encoded = [backbone.encode(q, a, "") for q, a in (("How many?", "3"), ("What is on this cover?", "red cup"))]
    return encoded, torch.randn(2, *backbone.family.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("routing", ["shared", "released"])
@pytest.mark.parametrize(("stage", "learns"), [(0, False), (2, True)])
def test_key_and_network_learn_from_the_second_stage_on(adapters, stage, learns, routing):
    method, session = made(routing=routing), order(adapters, stage)
    adapters.load({**adapters.base_projector(), **drawn(adapters, 9)})
    with adapters.training():
        method.prepare(session)
        method.loss(session, *records(adapters)).backward()
        gradients = {n: float(p.grad.abs().sum()) for n, p in adapters.trainable.items()}
    assert {gradients[n] > 1e-12 for n in gradients if n.startswith("routing.")} == {learns}
    assert all(g > 0 for n, g in gradients.items() if not n.startswith("routing."))
    assert not adapters.backbone.answering.rows


def test_what_answers_is_what_was_trained(adapters):
    """The newest subspace beside two frozen ones, and all three as a mixture: the same logits."""
    method, session, batch = made(), order(adapters, 2), records(adapters)
    subspaces = [*(drawn(adapters, n) for n in range(2)), drawn(adapters, 9)]
    seen: list[torch.Tensor] = []

    def noted(embeds: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        seen.append(embeds.new_tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0]]))
        return seen[-1]

    adapters.load({**adapters.base_projector(), **subspaces[-1]})
    with adapters.training(), torch.no_grad():
        method.prepare(session)
        with adapters.weighed(noted):
            trained = adapters.backbone.answer_logits(*batch)[0]
    adapters.load_mixture(subspaces, adapters.base_projector())
    with torch.no_grad(), adapters.mixed(np.ones((2, 3), np.float32)), adapters.weighed(noted):
        torch.testing.assert_close(adapters.backbone.answer_logits(*batch)[0], trained, rtol=0, atol=1e-4)
    weights = seen[0].softmax(-1).numpy()
    with torch.no_grad(), adapters.mixed(weights):
        torch.testing.assert_close(adapters.backbone.answer_logits(*batch)[0], trained, rtol=0, atol=1e-4)
